package manifest

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// Kind is one kind of resource.
type Kind struct {
	Name   string // as documents spell it: "LegalBasis"
	Plural string // as people type it: "legal-bases"
	Zonal  bool   // rests in a zone store, not in the catalog
	field  protoreflect.Name
}

var kinds = []Kind{
	{"Zone", "zones", false, "zone"},
	{"Region", "regions", false, "region"},
	{"LegalBasis", "legal-bases", false, "legal_basis"},
	{"Policy", "policies", false, "policy"},
	{"API", "apis", false, "api"},
	{"Product", "products", false, "product"},
	{"Plan", "plans", false, "plan"},
	{"Switch", "switches", false, "switch"},
	{"Customer", "customers", true, "customer"},
	{"Closure", "closures", true, "closure"},
	{"Drain", "drains", true, "drain"},
}

// Kinds lists all kinds, in the order in which they rest on each other.
func Kinds() []Kind { return slices.Clone(kinds) }

// ParseKind takes what people type: any case, singular or plural, with or without dashes. Documents are
// stricter: they spell Kind.Name.
func ParseKind(s string) (Kind, bool) {
	plain := func(s string) string { return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s)) }
	for _, k := range kinds {
		if p := plain(s); p == plain(k.Name) || p == plain(k.Plural) || k.Name == "LegalBasis" && (p == "basis" || p == "bases") {
			return k, true
		}
	}
	return Kind{}, false
}

// KindOf is the kind of a resource's spec; false if it has none.
func KindOf(r *adminv1.Resource) (Kind, bool) {
	m := r.ProtoReflect()
	if !m.IsValid() {
		return Kind{}, false
	}
	f := m.WhichOneof(m.Descriptor().Oneofs().ByName("spec"))
	if f == nil {
		return Kind{}, false
	}
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.field == f.Name() })
	return kinds[i], true
}

func specField(k Kind) protoreflect.FieldDescriptor {
	return (&adminv1.Resource{}).ProtoReflect().Descriptor().Fields().ByName(k.field)
}

// Spec describes the kind's own fields.
func (k Kind) Spec() protoreflect.MessageDescriptor { return specField(k).Message() }

// SpecOf is the spec of a resource of this kind.
func (k Kind) SpecOf(r *adminv1.Resource) protoreflect.Message {
	return r.ProtoReflect().Get(specField(k)).Message()
}
