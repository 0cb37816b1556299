package adminapi

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// fieldChanges lists what differs, by path of the manifest. old may be nil.
func fieldChanges(old, new record) []*adminv1.FieldChange {
	was, is := map[string]string{}, map[string]string{}
	if old != nil {
		flattenSpec(toProto(old, group.Revision{}), was)
	}
	flattenSpec(toProto(new, group.Revision{}), is)
	paths := map[string]bool{}
	for p := range was {
		paths[p] = true
	}
	for p := range is {
		paths[p] = true
	}
	var out []*adminv1.FieldChange
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if was[p] != is[p] {
			out = append(out, &adminv1.FieldChange{Field: p, Old: was[p], New: is[p]})
		}
	}
	return out
}

func flattenSpec(r *adminv1.Resource, out map[string]string) {
	m := r.ProtoReflect()
	if _, ok := manifest.KindOf(r); ok {
		flatten("spec", m.Get(m.WhichOneof(m.Descriptor().Oneofs().ByName("spec"))).Message(), out)
	}
}

func flatten(path string, m protoreflect.Message, out map[string]string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(f.Name())
		if f.IsList() {
			for i := range v.List().Len() {
				flattenValue(fmt.Sprintf("%s[%d]", at, i), f, v.List().Get(i), out)
			}
			return true
		}
		flattenValue(at, f, v, out)
		return true
	})
}

func flattenValue(at string, f protoreflect.FieldDescriptor, v protoreflect.Value, out map[string]string) {
	if f.Kind() != protoreflect.MessageKind {
		out[at] = v.String()
		return
	}
	if d, ok := v.Message().Interface().(*durationpb.Duration); ok {
		out[at] = d.AsDuration().String()
		return
	}
	flatten(at, v.Message(), out)
}
