package syncserver

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

func full() *syncv1.Status {
	return &syncv1.Status{Ready: true, ServesAloneUntilUnix: 5, CertificateSerial: "0af3", CutPairs: []string{"eu-west>us-east"}, RelayAddr: "[::1]:7443",
		Doors:   &syncv1.Doors{Addresses: []string{"192.0.2.1", "2001:db8::1"}, HttpsPort: 443, Dns: true},
		Outlook: &syncv1.Outlook{Held: true, SilentEdges: []string{"eu-west-edge-2"}, Regions: []*syncv1.RegionVerdict{{Region: "eu-west", Reason: syncv1.VerdictReason_VERDICT_REASON_NOT_REACHED, Against: 1, Observers: 2}}},
		Load:    &syncv1.Load{Accepted: 7}, CheckpointSize: 9, CheckpointRefusal: syncv1.CheckpointRefusal_CHECKPOINT_REFUSAL_PROOF,
		UsageTrouble: &syncv1.UsageTrouble{Why: syncv1.UsageRefusal_USAGE_REFUSAL_GAP, Epoch: 3, Final: true}}
}

// An edge that says of itself what it may is heard whole; one that puts a secret into any field that could hold one is
// heard without it, whatever field that is.
func TestHeard_TakesNoWordsOfAnEdge(t *testing.T) {
	if got, left := heard(full()); left != 0 || !proto.Equal(got, full()) {
		t.Errorf("%d values were left out of %v, which is as it should be: %v", left, full(), got)
	}
	const secret = "bw_emea_Secret Erika\n"
	fields := 0
	var walk func(m protoreflect.Message, root *syncv1.Status)
	walk = func(m protoreflect.Message, root *syncv1.Status) {
		for i := range m.Descriptor().Fields().Len() {
			f := m.Descriptor().Fields().Get(i)
			was := m.Get(f)
			switch {
			case f.Kind() == protoreflect.StringKind && f.IsList():
				l := m.NewField(f).List()
				l.Append(protoreflect.ValueOfString(secret))
				m.Set(f, protoreflect.ValueOfList(l))
			case f.Kind() == protoreflect.StringKind:
				m.Set(f, protoreflect.ValueOfString(secret))
			case f.Kind() == protoreflect.EnumKind:
				if name := f.Enum().Values().ByNumber(otherValue); name == nil || !strings.HasSuffix(string(name.Name()), "_OTHER") {
					t.Errorf("value %d of %s is not OTHER", otherValue, f.Enum().FullName())
				}
				m.Set(f, protoreflect.ValueOfEnum(999))
			case f.Kind() == protoreflect.MessageKind && f.IsList():
				for j := range was.List().Len() {
					walk(was.List().Get(j).Message(), root)
				}
				continue
			case f.Kind() == protoreflect.MessageKind && m.Has(f):
				walk(was.Message(), root)
				continue
			case f.Kind() == protoreflect.MessageKind:
				t.Errorf("%s is not in this test's full status: it is heard of nobody", f.FullName())
				continue
			default:
				continue
			}
			fields++
			before := proto.CloneOf(root)
			got, left := heard(root)
			if text := got.String(); left == 0 || strings.Contains(text, "Secret") || strings.Contains(text, "999") {
				t.Errorf("%s: heard %s, %d left out", f.FullName(), text, left)
			}
			if !proto.Equal(root, before) {
				t.Errorf("%s: what the edge sent was changed in place", f.FullName())
			}
			m.Set(f, was)
		}
	}
	root := full()
	walk(root.ProtoReflect(), root)
	if fields < 9 {
		t.Errorf("only %d fields were tried", fields)
	}
	// What an older program's field, or a newer one's, carries does not go on under the receiver's eyes.
	old := full()
	old.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 11, protowire.BytesType), secret))
	if got, left := heard(old); left != 1 || !proto.Equal(got, full()) {
		t.Errorf("with a field that is unknown: %v, %d left out", got, left)
	}
	if got := reasonOf(&syncv1.Nack{Reason: secret}); got != otherReason {
		t.Errorf("a reason that is none: %q", got)
	}
	if got := reasonOf(&syncv1.Nack{Reason: "SUM_MISMATCH"}); got != "SUM_MISMATCH" {
		t.Errorf("a reason: %q", got)
	}
	if got := versionOf(&syncv1.Hello{Version: secret}); got != otherVersion {
		t.Errorf("a version that is none: %q", got)
	}
}
