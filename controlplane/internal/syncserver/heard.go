package syncserver

import (
	"net/netip"
	"regexp"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
)

// What an edge says of itself goes on from here: to the zone's leader, to operators, into logs. An edge that was taken
// over, or one with a bug, could put parts of requests into any text (invariant 19). So each text is held to the form of
// what it is for, a value of a list that this program does not know becomes the list's OTHER, and fields that it does not
// know are dropped. What does not fit is left out and counted; the edge is served all the same.

// forms of all texts in a Status; a field without one is left out.
var forms = map[protoreflect.FullName]*regexp.Regexp{
	"bailiwick.sync.v1.Status.certificate_serial": regexp.MustCompile(`^[0-9a-f]{0,64}$`),
	"bailiwick.sync.v1.Status.cut_pairs":          regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}>[a-z0-9][a-z0-9.-]{0,62}$`),
	"bailiwick.sync.v1.Status.relay_addr":         regexp.MustCompile(`^[A-Za-z0-9.:\[\]_-]{0,261}$`), // host:port
	"bailiwick.sync.v1.Doors.addresses":           regexp.MustCompile(`^[0-9a-fA-F.:]{1,45}$`),
	"bailiwick.sync.v1.Outlook.silent_edges":      oneName,
	"bailiwick.sync.v1.RegionVerdict.region":      oneName,
	"bailiwick.sync.v1.Outcome.api":               oneName,
	"bailiwick.sync.v1.Quarantined.id":            regexp.MustCompile(`^[A-Za-z0-9_./>-]{1,200}$`), // of an object that this zone sent
}

var (
	oneName    = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)
	oneReason  = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	oneVersion = regexp.MustCompile(`^[A-Za-z0-9.+_-]{0,64}$`)
)

const (
	otherReason  = "OTHER"
	otherVersion = "other"
	// otherValue is OTHER in each list of values that an edge tells.
	otherValue = 1
	// maxHeard bounds each list: more than an installation has regions, edges, or pairs cut between two acks.
	maxHeard = 4096
)

// reasonOf is the reason of a NACK, as far as it reads as one.
func reasonOf(n *syncv1.Nack) string {
	if oneReason.MatchString(n.GetReason()) {
		return n.GetReason()
	}
	return otherReason
}

func versionOf(h *syncv1.Hello) string {
	if oneVersion.MatchString(h.GetVersion()) {
		return h.GetVersion()
	}
	return otherVersion
}

// heard is what of a status is taken, and how many values were not.
func heard(told *syncv1.Status) (*syncv1.Status, int) {
	out := proto.CloneOf(told)
	left := 0
	scrub(out.ProtoReflect(), &left)
	for _, a := range out.GetDoors().GetAddresses() {
		if _, err := netip.ParseAddr(a); err != nil { // it has an address's letters and is none
			out.Doors.Addresses = nil
			left++
			break
		}
	}
	return out, left
}

func scrub(m protoreflect.Message, left *int) {
	if len(m.GetUnknown()) > 0 {
		m.SetUnknown(nil)
		*left++
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			m.Clear(f) // there is none, and a new one is text twice over
			*left++
		case f.IsList():
			kept := m.NewField(f).List()
			for i := range v.List().Len() {
				if x, ok := fits(f, v.List().Get(i), left); ok && i < maxHeard {
					kept.Append(x)
				} else {
					*left++
				}
			}
			m.Set(f, protoreflect.ValueOfList(kept))
		default:
			if x, ok := fits(f, v, left); ok {
				m.Set(f, x)
			} else {
				m.Clear(f)
				*left++
			}
		}
		return true
	})
}

// fits is one value as it may go on.
func fits(f protoreflect.FieldDescriptor, v protoreflect.Value, left *int) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.StringKind:
		form := forms[f.FullName()]
		return v, form != nil && form.MatchString(v.String())
	case protoreflect.BytesKind: // a sum, which is compared with another and shown to nobody
		return v, f.FullName() == "bailiwick.sync.v1.Status.outcomes_sum" && len(v.Bytes()) == len(revision.Sum{})
	case protoreflect.EnumKind:
		if f.Enum().Values().ByNumber(v.Enum()) == nil {
			*left++
			return protoreflect.ValueOfEnum(otherValue), true
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		scrub(v.Message(), left)
	}
	return v, true
}
