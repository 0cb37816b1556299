package relay_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
)

// crosses names each header of our own that goes from edge to edge, perhaps into another zone, and each field of
// text or bytes of the grant that one of them carries, with the reason. The request itself is what the policy
// permits to cross; nothing else may, and no free text does.
var crosses = map[string]string{
	"HeaderAPI": "catalogue id", "HeaderRoute": "catalogue id", "HeaderGrant": "the grant below", "HeaderIncarnation": "random", "HeaderPing": "constant", "HeaderHome": "catalogue id",
	"HeaderRequestID": "random", "HeaderServed": "catalogue id", "HeaderRefused": "enum: rules of refusal", "HeaderUnsent": "constant", "HeaderLeaving": "constant", "HeaderBlameless": "constant", "HeaderBounded": "random", "HeaderAwait": "random, as HeaderRequestID",

	"HeaderStream": "enum: what is asked for in place of an answer", "HeaderClass": "enum: priority classes; another word is the usual one",

	"HeaderTrailer": "the request itself: fields that the client sent behind its body, for its upstream alone, as its head and body are; no edge reads more of them than whether they may go on",

	"bailiwick.sync.v1.SignedGrant.payload": "Grant", "bailiwick.sync.v1.SignedGrant.signature": "Ed25519",
	"bailiwick.sync.v1.Grant.id": "random", "bailiwick.sync.v1.Grant.zone": "catalogue id", "bailiwick.sync.v1.Grant.edge": "name of a node", "bailiwick.sync.v1.Grant.incarnation": "random",
	"bailiwick.sync.v1.Grant.from": "catalogue id", "bailiwick.sync.v1.Grant.to": "catalogue id", "bailiwick.sync.v1.Grant.policies": "catalogue ids",
	"bailiwick.sync.v1.Peer.edge": "name of a node", "bailiwick.sync.v1.Peer.relay_addr": "address of a node",
}

func TestRelay_CarriesNoFreeText(t *testing.T) {
	seen := map[string]bool{}
	file, err := parser.ParseFile(token.NewFileSet(), "wire.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		block, ok := d.(*ast.GenDecl)
		if !ok || block.Tok != token.CONST {
			continue
		}
		for _, s := range block.Specs {
			for _, name := range s.(*ast.ValueSpec).Names {
				if strings.HasPrefix(name.Name, "Header") {
					seen[name.Name] = true
				}
			}
		}
	}
	if len(seen) < 5 {
		t.Fatalf("wire.go names %d headers: they are not where they were", len(seen))
	}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		fields := m.Fields()
		for i := range fields.Len() {
			switch f := fields.Get(i); f.Kind() {
			case protoreflect.StringKind, protoreflect.BytesKind:
				seen[string(f.FullName())] = true
			case protoreflect.MessageKind:
				walk(f.Message())
			}
		}
	}
	walk((&syncv1.SignedGrant{}).ProtoReflect().Descriptor())
	walk((&syncv1.Grant{}).ProtoReflect().Descriptor())
	for name := range maps.Keys(seen) {
		if crosses[name] == "" {
			t.Errorf("%s goes from edge to edge across borders: it needs a reason in this test's list, and free text has none", name)
		}
	}
	for name := range maps.Keys(crosses) {
		if !seen[name] {
			t.Errorf("%s has a reason and does not exist any more", name)
		}
	}
}

// What a peer says of its refusal goes into the log and the evidence, and with it to the control plane: a name of our
// list, or none. An edge that was taken over writes nothing there in its own words.
func TestClient_TakesNoWordsOfAPeerForARule(t *testing.T) {
	b := newBorder(t)
	for said, want := range map[string]string{relay.RulePair: relay.RulePair, grant.Expired: grant.Expired, "alice of acme": relay.RuleOther, "PAIR-CLOSED": relay.RuleOther} {
		b.local.mu.Lock()
		b.local.says = said
		b.local.mu.Unlock()
		if _, err := b.do(t.Context(), nil); rule(err) != want {
			t.Errorf("the peer says %q: got %v, want rule %s", said, err, want)
		}
	}
	b.evidence.mu.Lock()
	defer b.evidence.mu.Unlock()
	for key := range b.evidence.refusals {
		if strings.Contains(key[0], "alice") {
			t.Errorf("the peer's words are in the evidence: %v", key)
		}
	}
}
