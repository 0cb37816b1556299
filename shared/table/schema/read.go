package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	yaml "go.yaml.in/yaml/v3"
)

// document is a document as it was read, and the line of each of its values.
type document struct {
	root  any
	lines map[string]int // by pointer
	made  *jsonschema.Compiler
	nots  int // schemas that were made of it

	schemas map[string]*Schema // by pointer
	said    map[string]saying  // likewise
}

// read takes JSON, or YAML that says the same as JSON.
func read(text string) (*document, error) {
	if len(text) > MaxDocument {
		return nil, fmt.Errorf("the document has %d bytes, more than %d", len(text), MaxDocument)
	}
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil { // its text says the line
		return nil, fmt.Errorf("read the document: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(n.Content) != 1 {
		return nil, errors.New("the document is empty")
	}
	d := &document{lines: map[string]int{}, schemas: map[string]*Schema{}, said: map[string]saying{}}
	var err error
	d.root, err = d.value(n.Content[0], "", 0)
	return d, err
}

// at is an error that says the line of a value.
func (d *document) at(pointer, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if pointer == "" {
		pointer = "/"
	}
	for p := pointer; ; {
		if line := d.lines[strings.TrimSuffix(p, "/")]; line > 0 {
			return fmt.Errorf("line %d (%s): %w", line, pointer, err)
		}
		i := strings.LastIndexByte(p, '/')
		if i <= 0 {
			return fmt.Errorf("%s: %w", pointer, err)
		}
		p = p[:i]
	}
}

func (d *document) value(n *yaml.Node, pointer string, depth int) (any, error) {
	d.lines[pointer] = n.Line
	if depth > maxDepth {
		return nil, d.at(pointer, "values lie more than %d deep within others", maxDepth)
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return nil, d.at(pointer, "anchors and aliases are not read: write the value, or a $ref")
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				return nil, d.at(pointer, "a name is plain text")
			}
			at := pointer + "/" + escape(k.Value)
			if _, twice := out[k.Value]; twice {
				return nil, d.at(at, "%q is written twice", k.Value)
			}
			v, err := d.value(n.Content[i+1], at, depth+1)
			if err != nil {
				return nil, err
			}
			out[k.Value] = v
		}
		if ref, ok := out["$ref"].(string); ok && !strings.HasPrefix(ref, "#") {
			return nil, d.at(pointer, "$ref %q: documents refer to nothing outside themselves; write #/…", cut(ref))
		}
		if _, ok := out["$id"].(string); ok && depth > 0 {
			return nil, d.at(pointer, "$id within a document is not taken: it would change what each $ref below it names")
		}
		for _, name := range []string{"$dynamicRef", "$recursiveRef"} {
			if _, ok := out[name].(string); ok {
				return nil, d.at(pointer, "%s is not taken: write $ref", name)
			}
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, item := range n.Content {
			v, err := d.value(item, pointer+"/"+strconv.Itoa(i), depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	}
	switch n.Tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), nil
	case "!!int", "!!float":
		if v := json.Number(n.Value); number(v) {
			return v, nil
		}
		f, err := strconv.ParseFloat(strings.ReplaceAll(n.Value, "_", ""), 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return nil, d.at(pointer, "number %q is none of JSON", cut(n.Value))
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
	}
	return n.Value, nil
}

var numbers = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$`)

// number says whether a number is JSON's and of a size that can be reckoned with: exactly, which for 1e999999999 takes all
// memory there is.
func number(n json.Number) bool { return len(n) <= 64 && numbers.MatchString(string(n)) }

// Decode reads JSON, with values at most depth deep within others: objects as map[string]any, numbers as json.Number. Of a name that is there twice two readers could take two values, so none is taken.
func Decode(data []byte, depth int) (any, error) {
	if !utf8.Valid(data) { // each reader has its own way to make text of that
		return nil, errors.New("the body is not JSON: it is no UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := decodeValue(dec, depth)
	if err == nil {
		if _, err := dec.Token(); err != io.EOF {
			return nil, errors.New("the body holds more than one value")
		}
		return v, nil
	}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok || err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, errors.New("the body is not JSON")
	}
	return nil, err
}

func decodeValue(dec *json.Decoder, depth int) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		if !number(t) {
			return nil, errors.New("a number is longer than 64 characters, or its exponent than three digits")
		}
		return t, nil
	case json.Delim:
		if depth == 0 {
			return nil, errors.New("values lie deeper within others than the document foresees")
		}
		if t == '[' {
			out := []any{}
			for dec.More() {
				v, err := decodeValue(dec, depth-1)
				if err != nil {
					return nil, err
				}
				out = append(out, v)
			}
			_, err = dec.Token()
			return out, err
		}
		out := map[string]any{}
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			name, _ := k.(string)
			if _, twice := out[name]; twice {
				return nil, fmt.Errorf("member %q is there twice", cut(name))
			}
			if out[name], err = decodeValue(dec, depth-1); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return out, err
	}
	return t, nil
}

func escape(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

func pointerOf(at []string) string {
	var b strings.Builder
	for _, s := range at {
		b.WriteByte('/')
		b.WriteString(escape(s))
	}
	return b.String()
}

// fragment is a pointer as part of a URI.
func fragment(pointer string) string { return (&url.URL{Fragment: pointer}).EscapedFragment() }

// find is the value at a pointer of the document itself.
func (d *document) find(pointer string) (any, bool) {
	v := d.root
	if pointer == "" {
		return v, true
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		switch in := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = in[part]; !ok {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(in) {
				return nil, false
			}
			v = in[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// target is the pointer that a $ref names.
func (d *document) target(ref string) (string, bool) {
	pointer, err := url.PathUnescape(strings.TrimPrefix(ref, "#"))
	if err != nil || pointer != "" && pointer[0] != '/' {
		return "", false
	}
	_, ok := d.find(pointer)
	return pointer, ok
}

// explain says the line of what a compiler refuses.
func (d *document) explain(pointer string, err error) error {
	at := pointer
	if e, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
		if v, ok := e.Err.(*jsonschema.ValidationError); ok {
			for len(v.Causes) > 0 {
				v = v.Causes[0]
			}
			if _, f, ok := strings.Cut(e.URL, "#"); ok {
				at, _ = url.PathUnescape(f)
			} else {
				at = ""
			}
			at += pointerOf(v.InstanceLocation)
			return d.at(at, "%s", cut(v.ErrorKind.LocalizedString(printer)))
		}
	}
	return d.at(at, "%s", cut(strings.ReplaceAll(err.Error(), address, "")))
}
