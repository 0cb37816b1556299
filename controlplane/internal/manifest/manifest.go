// Package manifest owns the text form of resources: YAML documents of kind, name, etag and spec, read strictly
// into generated messages and written back.
//
// Strict means that an unknown, repeated or empty field, an alias, or a value of the wrong type is an error with
// its file and line, and that one error refuses the whole input. It never asks a server, so it cannot say
// whether a name exists. Pure: no I/O, no state; everything may be used at once.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

const (
	MaxBytes     = 4 << 20 // of one input; the server reads no more either
	MaxDocuments = 1000    // of one apply

	// Reasons of the faults that Parse returns.
	ReasonTooLarge = "TOO_LARGE"
	ReasonSyntax   = "MANIFEST_SYNTAX"
	ReasonInvalid  = "MANIFEST_INVALID"
	ReasonUnknown  = "FIELD_UNKNOWN"

	maxErrors = 20 // told at once
)

// Document is one resource and where it was written.
type Document struct {
	Kind     Kind
	Resource *adminv1.Resource
	File     string
	lines    map[string]int
}

// Position is "file:line" of a field path such as "spec.pairs[2].to", or of what encloses it.
func (d Document) Position(path string) string {
	for {
		if line, ok := d.lines[path]; ok {
			return d.File + ":" + strconv.Itoa(line)
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return d.File + ":" + strconv.Itoa(d.lines[""])
		}
		path = path[:cut]
	}
}

// TooLarge is the refusal of an input over MaxBytes, for who reads files and stops early.
func TooLarge(file string) error {
	return fault.New(fault.TooLarge, ReasonTooLarge, "%s: a manifest holds at most %d MiB: split it", file, MaxBytes>>20)
}

// Parse reads all documents of one input. The error is a *fault.Error whose message has a line for each of the
// first errors found.
func Parse(file string, data []byte) ([]Document, error) {
	if len(data) > MaxBytes {
		return nil, TooLarge(file)
	}
	var docs []Document
	var all problems
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			all.add(ReasonSyntax, "%s", syntax(file, err))
			break
		}
		if len(node.Content) != 1 || isNull(node.Content[0]) {
			continue // only comments between two separators
		}
		if len(docs) == MaxDocuments {
			return nil, fault.New(fault.TooLarge, ReasonTooLarge, "%s:%d: more than %d documents: split the file", file, node.Content[0].Line, MaxDocuments)
		}
		p := parser{file: file, lines: map[string]int{"": node.Content[0].Line}, problems: &all}
		if d, ok := p.document(node.Content[0]); ok {
			docs = append(docs, d)
		}
	}
	return docs, all.err()
}

type problems struct {
	reason string // of the first
	texts  []string
	more   int
}

func (p *problems) add(reason, format string, args ...any) {
	if p.reason == "" {
		p.reason = reason
	}
	if len(p.texts) == maxErrors {
		p.more++
		return
	}
	p.texts = append(p.texts, fmt.Sprintf(format, args...))
}

func (p *problems) err() error {
	if len(p.texts) == 0 {
		return nil
	}
	text := strings.Join(p.texts, "\n")
	if p.more > 0 {
		text += fmt.Sprintf("\nand %d more", p.more)
	}
	return fault.New(fault.Invalid, p.reason, "%s", text)
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntax puts the library's line where a compiler would: only its presentation changes.
func syntax(file string, err error) string {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		return file + ":" + m[1] + ": " + text[len(m[0]):]
	}
	return file + ": " + strings.TrimPrefix(text, "yaml: ")
}

type parser struct {
	file  string
	lines map[string]int
	*problems
}

func (p *parser) fail(n *yaml.Node, reason, format string, args ...any) {
	p.add(reason, "%s:%d: %s", p.file, n.Line, fmt.Sprintf(format, args...))
}

// members walks a mapping, refusing what is ambiguous.
func (p *parser) members(n *yaml.Node, path string, each func(key string, keyNode, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, ReasonInvalid, "%s is not a mapping of fields", or(path, "the document"))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode || k.Tag == "!!merge":
			p.fail(k, ReasonInvalid, "%s: a field name is plain text", or(path, "the document"))
		case seen[k.Value]:
			p.fail(k, ReasonInvalid, "%s is written twice", join(path, k.Value))
		default:
			seen[k.Value] = true
			each(k.Value, k, v)
		}
	}
}

func (p *parser) document(n *yaml.Node) (Document, bool) {
	before := len(p.texts) + p.more
	d := Document{Resource: &adminv1.Resource{}, File: p.file, lines: p.lines}
	var spec, kind *yaml.Node
	p.members(n, "", func(key string, k, v *yaml.Node) {
		p.lines[key] = k.Line
		switch key {
		case "kind":
			kind = v
		case "name":
			d.Resource.Name, _ = p.text(v, "name")
		case "etag":
			d.Resource.Etag, _ = p.text(v, "etag")
		case "spec":
			spec = v
		default:
			p.fail(k, ReasonUnknown, "unknown field %q: a document has kind, name, spec and may have etag", key)
		}
	})
	if len(p.texts)+p.more > before {
		return d, false
	}
	if kind == nil {
		p.fail(n, ReasonInvalid, "kind is missing: one of %s", kindNames())
		return d, false
	}
	text, _ := p.text(kind, "kind")
	at := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == text })
	if at < 0 {
		p.fail(kind, ReasonInvalid, "kind %q is none of %s", kind.Value, kindNames())
		return d, false
	}
	d.Kind = kinds[at]
	if strings.TrimSpace(d.Resource.Name) == "" {
		p.fail(n, ReasonInvalid, "name of this %s is missing or blank", d.Kind.Name)
	}
	if spec == nil {
		p.fail(n, ReasonInvalid, "spec of %s %s is missing", d.Kind.Name, d.Resource.Name)
		return d, false
	}
	f := specField(d.Kind)
	m := d.Resource.ProtoReflect()
	p.message(spec, "spec", m.Mutable(f).Message())
	return d, len(p.texts)+p.more == before
}

func (p *parser) message(n *yaml.Node, path string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	p.members(n, path, func(key string, k, v *yaml.Node) {
		at := join(path, key)
		p.lines[at] = k.Line
		f := fields.ByName(protoreflect.Name(key))
		if f == nil {
			var known []string
			for i := range fields.Len() {
				known = append(known, string(fields.Get(i).Name()))
			}
			p.fail(k, ReasonUnknown, "unknown field %s: %s has %s", at, path, strings.Join(known, ", "))
			return
		}
		if !f.IsList() {
			if value, ok := p.value(v, at, f, func() protoreflect.Value { return m.NewField(f) }); ok {
				m.Set(f, value)
			}
			return
		}
		if v.Kind != yaml.SequenceNode {
			p.fail(v, ReasonInvalid, "%s is not a list", at)
			return
		}
		list := m.Mutable(f).List()
		for i, item := range v.Content {
			itemPath := fmt.Sprintf("%s[%d]", at, i)
			p.lines[itemPath] = item.Line
			if value, ok := p.value(item, itemPath, f, list.NewElement); ok {
				list.Append(value)
			}
		}
	})
}

func (p *parser) value(n *yaml.Node, path string, f protoreflect.FieldDescriptor, empty func() protoreflect.Value) (protoreflect.Value, bool) {
	var none protoreflect.Value
	if f.Kind() == protoreflect.MessageKind && f.Message().FullName() != "google.protobuf.Duration" {
		v := empty()
		before := len(p.texts) + p.more
		p.message(n, path, v.Message())
		return v, len(p.texts)+p.more == before
	}
	text, ok := p.text(n, path)
	if !ok {
		return none, false
	}
	switch f.Kind() {
	case protoreflect.MessageKind:
		d, err := time.ParseDuration(text)
		if err != nil {
			p.fail(n, ReasonInvalid, "%s: %q is not a duration such as 200ms, 5s or 1h", path, text)
			return none, false
		}
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), true
	case protoreflect.StringKind:
		if n.Tag == "!!bool" {
			p.fail(n, ReasonInvalid, "%s: %s is true or false; put it in quotes if text is meant", path, text)
			return none, false
		}
		return protoreflect.ValueOfString(text), true
	case protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			p.fail(n, ReasonInvalid, "%s: %q is neither true nor false", path, text)
			return none, false
		}
		return protoreflect.ValueOfBool(strings.EqualFold(text, "true")), true
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		bits := 64
		if f.Kind() == protoreflect.Int32Kind {
			bits = 32
		}
		i, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, bits)
		if err != nil || n.Tag != "!!int" {
			p.fail(n, ReasonInvalid, "%s: %q is not a whole number of %d bits", path, text, bits)
			return none, false
		}
		if bits == 32 {
			return protoreflect.ValueOfInt32(int32(i)), true
		}
		return protoreflect.ValueOfInt64(i), true
	}
	p.fail(n, ReasonInvalid, "%s cannot be written in a manifest", path)
	return none, false
}

func (p *parser) text(n *yaml.Node, path string) (string, bool) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.fail(n, ReasonInvalid, "%s: anchors and aliases are not read: write the value", path)
	case n.Kind != yaml.ScalarNode:
		p.fail(n, ReasonInvalid, "%s is not a single value", path)
	case isNull(n):
		p.fail(n, ReasonInvalid, "%s is empty: give it a value or leave it out", path)
	default:
		return n.Value, true
	}
	return "", false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func kindNames() string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.Name)
	}
	return strings.Join(out, ", ")
}
