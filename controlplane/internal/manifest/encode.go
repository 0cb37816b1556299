package manifest

import (
	"bytes"
	"encoding/json"
	"strconv"

	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// YAML writes resources as documents that Parse reads back. Unset fields are left out.
func YAML(resources []*adminv1.Resource) ([]byte, error) {
	var buf bytes.Buffer
	for i, r := range resources {
		if i > 0 {
			buf.WriteString("---\n")
		}
		enc := yaml.NewEncoder(&buf)
		enc.SetIndent(2)
		if err := enc.Encode(document(r, false)); err != nil {
			return nil, err
		}
		if err := enc.Close(); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}

// JSON writes one resource with the fields of its manifest in their order: numbers as numbers, durations as
// text, and unset values and lists as well, so that a program finds each field.
func JSON(r *adminv1.Resource) json.RawMessage {
	var buf bytes.Buffer
	writeJSON(&buf, document(r, true))
	return buf.Bytes()
}

func document(r *adminv1.Resource, all bool) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put := func(key string, v *yaml.Node) {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, v)
	}
	k, ok := KindOf(r)
	put("kind", text(k.Name))
	put("name", text(r.GetName()))
	if r.GetEtag() != "" || all {
		put("etag", text(r.GetEtag()))
	}
	if ok {
		put("spec", object(r.ProtoReflect().Get(specField(k)).Message(), all))
	}
	return n
}

func object(m protoreflect.Message, all bool) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && (!all || f.Kind() == protoreflect.MessageKind && !f.IsList()) {
			continue
		}
		v := m.Get(f)
		var node *yaml.Node
		if f.IsList() {
			node = &yaml.Node{Kind: yaml.SequenceNode}
			for j := range v.List().Len() {
				node.Content = append(node.Content, value(f, v.List().Get(j), all))
			}
		} else {
			node = value(f, v, all)
		}
		n.Content = append(n.Content, text(string(f.Name())), node)
	}
	return n
}

func value(f protoreflect.FieldDescriptor, v protoreflect.Value, all bool) *yaml.Node {
	switch f.Kind() {
	case protoreflect.MessageKind:
		if d, ok := v.Message().Interface().(*durationpb.Duration); ok {
			return text(d.AsDuration().String())
		}
		return object(v.Message(), all)
	case protoreflect.BoolKind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}
	}
	return text(v.String())
}

func text(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

func writeJSON(buf *bytes.Buffer, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		buf.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				buf.WriteByte(',')
			}
			writeJSON(buf, n.Content[i])
			buf.WriteByte(':')
			writeJSON(buf, n.Content[i+1])
		}
		buf.WriteByte('}')
	case yaml.SequenceNode:
		buf.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				buf.WriteByte(',')
			}
			writeJSON(buf, item)
		}
		buf.WriteByte(']')
	default:
		if n.Tag != "!!str" {
			buf.WriteString(n.Value)
			return
		}
		data, err := json.Marshal(n.Value)
		if err != nil {
			panic(err) // text always marshals
		}
		buf.Write(data)
	}
}
