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
	MaxDocument = 64 << 10 // bytes of a schema or document
	MaxBody     = 1 << 20  // bytes of a body that is held against one
	MaxErrors   = 10       // that one answer tells of
	maxDepth    = 64       // of values within values
	maxPattern  = 1000     // instructions of a pattern
	maxMatched  = 64 << 10 // bytes of a text that a pattern is held against
	maxLooks    = 100_000  // how often one value may be looked at
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
	depth int
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
	c.UseRegexpEngine(pattern)
	if err := c.AddResource(address, d.root); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	d.made = c
	return c, nil
}

// compile makes the schema at a pointer of the document.
func (d *document) compile(pointer string) (*Schema, error) {
	depth, err := d.looks(pointer)
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
	return &Schema{s, depth}, nil
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
	return s.judge(v, func(at []string) Finding { return Finding{Pointer: "#" + fragment(pointerOf(at))} })
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
