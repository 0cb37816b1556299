package adminapi

import (
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// Whoever breaks a pattern is told in words what to write.
func TestForms_HaveWordsForEachPattern(t *testing.T) {
	v, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	err = validation{v}.check(&adminv1.ApplyRequest{Resources: []*adminv1.Resource{{Name: "orders", Spec: &adminv1.Resource_Api{Api: &adminv1.API{
		Zone: "emea", Hosts: []string{"a.test"}, Routes: []*adminv1.Route{{Name: "all", PathPrefix: "orders", Methods: []string{"get"}}}}}}}})
	if err == nil || !strings.Contains(err.Error(), "path_prefix: begin it with /") || !strings.Contains(err.Error(), "capital letters") {
		t.Errorf("got %v", err)
	}
	seen := map[protoreflect.FullName]bool{}
	patterns := map[string]protoreflect.FullName{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if f.Message() != nil {
				walk(f.Message())
			}
			rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
			for _, p := range []string{rules.GetString().GetPattern(), rules.GetRepeated().GetItems().GetString().GetPattern()} {
				if p != "" {
					patterns[p] = f.FullName()
				}
			}
		}
	}
	for _, r := range requests() {
		walk(r.ProtoReflect().Descriptor())
	}
	for p, at := range patterns {
		if forms[p] == "" {
			t.Errorf("%s has the pattern %s, and forms has no words for it", at, p)
		}
	}
	if len(patterns) == 0 {
		t.Error("no field has a pattern: nothing was looked at")
	}
}
