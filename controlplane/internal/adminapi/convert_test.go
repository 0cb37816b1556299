package adminapi

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// What is taken in is stored, and shown whole: a field that toProto leaves out is one whose change is called unchanged and not
// written, and one that a change of another field takes away.
func TestConvert_EachFieldThereAndBack(t *testing.T) {
	specs := (&adminv1.Resource{}).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()
	for i := range specs.Len() {
		r := &adminv1.Resource{Name: "n"}
		spec := specs.Get(i)
		whole(r.ProtoReflect().Mutable(spec).Message())
		rec, err := fromProto(r)
		if err != nil {
			t.Fatalf("%s: %v", spec.Name(), err)
		}
		if got := toProto(rec, group.Revision{}); !proto.Equal(got, r) {
			t.Errorf("%s: what was taken in is shown as\n%v\nwant\n%v", spec.Name(), got, r)
		}
		kind, _ := fullName(rec)
		stored, err := decode(kind, group.KV{Key: keyOf(rec), Value: model.Encode(rec)})
		if err != nil {
			t.Fatalf("%s: %v", spec.Name(), err)
		}
		if got := toProto(stored, group.Revision{}); !proto.Equal(got, r) {
			t.Errorf("%s: what was stored is shown as\n%v\nwant\n%v", spec.Name(), got, r)
		}
	}
}

// whole fills every field of a message.
func whole(m protoreflect.Message) {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		d.Seconds = 7
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Message() != nil:
			l := m.Mutable(f).List()
			whole(l.AppendMutable().Message())
		case f.IsList():
			m.Mutable(f).List().Append(something(f))
		case f.Message() != nil:
			whole(m.Mutable(f).Message())
		default:
			m.Set(f, something(f))
		}
	}
}

func something(f protoreflect.FieldDescriptor) protoreflect.Value {
	n := int(f.Number()) + 1
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("aaaa") // also a signing key's base64
	}
	panic(fmt.Sprintf("no value of %v", f))
}
