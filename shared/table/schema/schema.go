// Package schema owns what requests are held against: JSON Schemas of bodies and OpenAPI documents, as control nodes take
// them and edges enforce them. Both compile with this code, so that what is applied is what is enforced.
//
// A document is compiled once, refers to nothing outside itself, and is bounded so that no request costs much: in its size, in
// the patterns it may hold (Go's, which take time in proportion to the text), and in how often one value is looked at. It
// never reads a file or a network. Nothing here survives a crash; a Schema or Document never changes and may be used by any
// number of goroutines at once.
package schema

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// Bounds.
const (
	MaxDocument = 64 << 10  // bytes of a schema or document
	MaxBody     = 1 << 20   // bytes of a body that is held against one
	MaxErrors   = 10        // that one answer tells of
	maxDepth    = 64        // of values within values
	maxPattern  = 1000      // instructions of a pattern
	maxMatched  = 64 << 10  // bytes of a text that a pattern is held against
	maxLooks    = 100_000   // how often one value may be looked at
	maxWork     = 2_000_000 // looks at all values of a body
	maxStrides  = 100e6     // of patterns over a body's texts: bytes times instructions
	maxTold     = 20_000    // looks at a body of which each thing that is wrong is named: that takes memory for each
	maxDetail   = 200
)

// Finding is one thing that is wrong with a request.
type Finding struct {
	Pointer   string `json:"pointer,omitempty"`   // of a body: RFC 6901, as a URI fragment: "#/items/0/price"
	Parameter string `json:"parameter,omitempty"` // else: "query limit", "header X-Trace", "path id"
	Detail    string `json:"detail"`
}

// Schema is a compiled JSON Schema.
type Schema struct {
	of    *jsonschema.Schema
	not   *jsonschema.Schema // what does not fit it: that is known at the first thing that is wrong, without memory for each
	depth int
	looks []float64 // at a value so deep

	texts, names float64 // instructions of patterns that a text, and the names in an object, are held against at each look
}

const address = "https://document.invalid/"

// Compile reads a JSON Schema, in JSON or YAML. An error says the line where it can.
func Compile(text string) (*Schema, error) {
	d, err := read(text)
	if err != nil {
		return nil, err
	}
	return d.compile("")
}

// compiler makes schemas of a document that was read.
func (d *document) compiler() (*jsonschema.Compiler, error) {
	if d.made != nil {
		return d.made, nil
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(nowhere{})
	c.AssertFormat()
	sized(c)
	c.UseRegexpEngine(pattern)
	if err := c.AddResource(address, d.root); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	d.made = c
	return c, nil
}

// compile makes the schema at a pointer of the document, once: hundreds of operations may take the same body.
func (d *document) compile(pointer string) (*Schema, error) {
	for range 16 { // further on it is a circle, perhaps, which looks says
		v, _ := d.find(pointer)
		m, _ := v.(map[string]any)
		ref, ok := m["$ref"].(string)
		if !ok || len(m) != 1 {
			break
		}
		to, ok := d.target(ref)
		if !ok {
			break
		}
		pointer = to
	}
	if s := d.schemas[pointer]; s != nil {
		return s, nil
	}
	s, err := d.compileAt(pointer)
	if err == nil {
		d.schemas[pointer] = s
	}
	return s, err
}

func (d *document) compileAt(pointer string) (*Schema, error) {
	depth, at, l, err := d.looks(pointer)
	if err != nil {
		return nil, err
	}
	c, err := d.compiler()
	if err != nil {
		return nil, err
	}
	s, err := c.Compile(address + "#" + fragment(pointer))
	if err != nil {
		return nil, d.explain(pointer, err)
	}
	name := fmt.Sprintf("%snot/%d", address, d.nots)
	d.nots++
	if err := c.AddResource(name, map[string]any{"not": map[string]any{"$ref": address + "#" + fragment(pointer)}}); err != nil {
		return nil, d.explain(pointer, err)
	}
	not, err := c.Compile(name)
	if err != nil {
		return nil, d.explain(pointer, err)
	}
	out := &Schema{of: s, not: not, depth: depth, texts: l.texts, names: l.names + l.texts} // propertyNames has a pattern of its own
	for i := range depth + 1 {
		out.looks = append(out.looks, at(i))
	}
	return out, nil
}

type nowhere struct{}

func (nowhere) Load(url string) (any, error) {
	return nil, fmt.Errorf("documents refer to nothing outside themselves: %s is not read", url)
}

// bounded is a pattern that is held against texts of a bounded length: a longer one does not match.
type bounded struct{ *regexp.Regexp }

func (b bounded) MatchString(s string) bool { return len(s) <= maxMatched && b.Regexp.MatchString(s) }

func pattern(text string) (jsonschema.Regexp, error) {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if n := size(parsed); n > maxPattern {
		return nil, fmt.Errorf("pattern %q is worth %d instructions, more than %d: write fewer repetitions", cut(text), n, maxPattern)
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	return bounded{re}, nil
}

// size is about how many instructions a pattern is, before it is any.
func size(re *syntax.Regexp) int {
	n := 1
	for _, sub := range re.Sub {
		n += size(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n += len(re.Rune)
	case syntax.OpCharClass:
		n += len(re.Rune) / 8
	case syntax.OpRepeat:
		n *= max(re.Min, re.Max, 1)
	}
	return min(n, 1<<30)
}

// Body holds a body against the schema; none: it is as it should be.
func (s *Schema) Body(data []byte) []Finding {
	v, err := Decode(data, s.depth)
	if err != nil {
		return []Finding{{Pointer: "#", Detail: err.Error()}}
	}
	work, strides := s.work(v, 0)
	if work > maxWork || strides > maxStrides {
		return []Finding{{Pointer: "#", Detail: "the body holds more values than can be held against the document: send less at a time"}}
	}
	if s.fits(v) {
		return nil
	}
	if work > maxTold {
		return []Finding{{Pointer: "#", Detail: "the body does not fit the document, and is too long to say where: send less at a time to hear of it"}}
	}
	return s.judge(v, func(at []string) Finding { return Finding{Pointer: "#" + fragment(pointerOf(at))} })
}

// work is how often all values are looked at, at most, and how far patterns go over them.
func (s *Schema) work(v any, depth int) (looks, strides float64) {
	here := s.looks[min(depth, len(s.looks)-1)]
	looks = here
	again := max(1, here)
	add := func(in any) {
		l, p := s.work(in, depth+1)
		looks, strides = looks+l, strides+p
	}
	switch v := v.(type) {
	case string:
		strides = float64(min(len(v), maxMatched)+1) * s.texts * again
	case map[string]any:
		for name, in := range v {
			strides += float64(min(len(name), maxMatched)+1) * s.names * again
			add(in)
		}
	case []any:
		for _, in := range v {
			add(in)
		}
	}
	return looks, strides
}

func (s *Schema) judge(v any, where func(at []string) Finding) (found []Finding) {
	err := s.of.Validate(v)
	if err == nil {
		return nil
	}
	e, ok := err.(*jsonschema.ValidationError)
	if !ok { // it would be a value that is no JSON
		return []Finding{where(nil)}
	}
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		if len(found) >= MaxErrors {
			return
		}
		f := where(e.InstanceLocation)
		switch e.ErrorKind.(type) {
		case *kind.AnyOf, *kind.OneOf:
			f.Detail = "fits none of the forms that are allowed here"
			if len(e.Causes) == 0 {
				f.Detail = "fits more than one of the forms of which exactly one is allowed here"
			}
			found = append(found, f)
			return
		}
		if len(e.Causes) == 0 {
			f.Detail = cut(e.ErrorKind.LocalizedString(printer))
			found = append(found, f)
			return
		}
		for _, c := range e.Causes {
			walk(c)
		}
	}
	walk(e)
	return found
}

var printer = message.NewPrinter(language.English)

func cut(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetail], "") + "…"
}
