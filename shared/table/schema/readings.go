package schema

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A parameter is a text, and a schema speaks of JSON's values: which of them a text may be taken for is gathered when a document
// is applied, from all schemas that look at the value. A request passes if one of the readings fits.
//
// Of one text there are two readings at most: what it is in JSON, if that is of a kind that the schema names, and the text
// itself. A list of n such texts would have 2^n, so no more than maxForms+2 of them are tried: each item as JSON, each as text,
// and for each schema that speaks of items, up to maxForms, each item as JSON where that fits it, else as text. The last ones
// need each item held against a schema by itself, which is done only where at most maxAlone have two readings, and never of
// what is too long to be told of. A look takes about a microsecond: who asks for a list of all that fits into a head pays no more
// than maxAsked of them for a reading, whatever the document.
const (
	maxForms     = 4
	maxAlone     = 100
	maxAsked     = 100_000 // looks at all values of a parameter
	maxPositions = 16      // of prefixItems that items are held against by themselves
)

// kinds are types of JSON, a bit each.
type kinds uint8

const (
	aNull kinds = 1 << iota
	aBoolean
	aNumber // an integer is one: whether it is whole is the schema's to say
	aString
	anArray
	anObject
	anything = 1<<iota - 1
)

var kindsOf = map[string]kinds{"null": aNull, "boolean": aBoolean, "integer": aNumber, "number": aNumber, "string": aString, "array": anArray, "object": anObject}

// saying is what a schema says of the kinds of a value.
type saying struct {
	may   kinds    // it is one of these, else it does not fit
	named kinds    // those of them that the schema speaks of: one that names none is about texts, as it always was
	items kinds    // in the lists that enum and const hold
	forms []string // pointers of schemas that speak of items
}

// says gathers what a schema says itself and by those that look at the same value. What not, if, then and else say narrows
// nothing here: the schema decides in the end, about each reading.
func (d *document) says(pointer string, depth int) saying {
	if s, ok := d.said[pointer]; ok {
		return s
	}
	out := saying{may: anything}
	v, _ := d.find(pointer)
	if v == false {
		return saying{}
	}
	m, ok := v.(map[string]any)
	if !ok || depth > maxDepth {
		return out
	}
	d.said[pointer] = out // one that lies within itself adds nothing to itself
	types := types(m)
	if len(types) > 0 {
		out.may = 0
		for _, t := range types {
			out.may |= kindsOf[t]
		}
		out.named = out.may
	} else if m["properties"] != nil {
		out.named = anObject
	}
	if m["items"] != nil || m["prefixItems"] != nil {
		if len(types) == 0 {
			out.named |= anArray
		}
		out.forms = []string{pointer}
	}
	values, written := m["enum"].([]any)
	if c, ok := m["const"]; ok {
		values, written = append(slices.Clip(values), c), true
	}
	if written {
		var all kinds
		for _, v := range values {
			all |= kindOf(v)
			list, _ := v.([]any)
			for _, in := range list {
				out.items |= kindOf(in)
			}
		}
		out.may, out.named = out.may&all, out.named|all
	}
	also := func(may kinds, s saying) {
		out.may, out.named, out.items = out.may&may, out.named|s.named, out.items|s.items
		for _, f := range s.forms {
			if len(out.forms) < maxForms && !slices.Contains(out.forms, f) {
				out.forms = append(out.forms, f)
			}
		}
	}
	if ref, ok := m["$ref"].(string); ok {
		if to, ok := d.target(ref); ok {
			s := d.says(to, depth+1)
			also(s.may, s)
		}
	}
	for _, k := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := m[k].([]any)
		may := kinds(0)
		for i := range list {
			s := d.says(pointer+"/"+k+"/"+strconv.Itoa(i), depth+1)
			if may |= s.may; k == "allOf" {
				may = s.may
			}
			also(anything, s)
			if k == "allOf" || i == len(list)-1 {
				out.may &= may
			}
		}
	}
	out.named &= out.may
	if out.may&anArray == 0 {
		out.forms, out.items = nil, 0
	}
	d.said[pointer] = out
	return out
}

func types(m map[string]any) []string {
	switch t := m["type"].(type) {
	case string:
		return []string{t}
	case []any:
		var out []string
		for _, v := range t {
			if s, ok := v.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func kindOf(v any) kinds {
	switch v.(type) {
	case nil:
		return aNull
	case bool:
		return aBoolean
	case json.Number:
		return aNumber
	case string:
		return aString
	case []any:
		return anArray
	}
	return anObject
}

// texts are the kinds that a text is read as.
func (s saying) texts() kinds {
	k := s.named & (aBoolean | aNumber | aNull)
	if s.may&aString != 0 {
		k = k&^aNull | aString // an empty text that may be one is one: it would else pass a length that it has not
	}
	return k
}

// form is a schema that speaks of items.
type form struct {
	first []*Schema // at the positions that it names
	rest  *Schema   // nil: it speaks of no others
}

func (f *form) at(i int) *Schema {
	if i < len(f.first) {
		return f.first[i]
	}
	return f.rest
}

// itemsOf are the kinds that the items of a list are read as, and, where a text may be two of them, the schemas that decide.
func (d *document) itemsOf(of saying) (k kinds, forms []form, err error) {
	var places [][]string // of each form
	all := saying{may: of.items, named: of.items}
	if len(of.forms) == 0 && of.items == 0 {
		all.may = aString
	}
	for _, at := range of.forms {
		v, _ := d.find(at)
		m, _ := v.(map[string]any)
		prefix, _ := m["prefixItems"].([]any)
		var list []string
		for i := range prefix {
			list = append(list, at+"/prefixItems/"+strconv.Itoa(i))
		}
		if m["items"] != nil {
			list = append(list, at+"/items")
		}
		for _, p := range list {
			s := d.says(p, 0)
			all.may, all.named = all.may|s.may, all.named|s.named
		}
		places = append(places, list)
	}
	if k = all.texts(); k&aString == 0 || k == aString {
		return k, nil, nil
	}
	for _, list := range places {
		var f form
		for i, p := range list {
			last := strings.HasSuffix(p, "/items")
			if i >= maxPositions && !last {
				f.first = append(f.first, nil)
				continue
			}
			s, err := d.compile(p)
			if err != nil {
				return 0, nil, err
			}
			if last {
				f.rest = s
			} else {
				f.first = append(f.first, s)
			}
		}
		forms = append(forms, f)
	}
	return k, forms, nil
}

// read takes a text for what it is in JSON, if that is one of these kinds. also: as a text it is another reading.
func (k kinds) read(s string) (v any, also bool) {
	s = strings.TrimSpace(s)
	switch {
	case k&aNumber != 0 && number(json.Number(s)):
		return json.Number(s), k&aString != 0
	case k&aBoolean != 0 && (s == "true" || s == "false"):
		return s == "true", k&aString != 0
	case k&aNull != 0 && (s == "" || s == "null"):
		return nil, false
	}
	return s, false
}

// hold holds what was said against the schema, reading by reading. Where none fits it tells what is wrong with the first.
func (p *parameter) hold(said []string, fits func(*Schema, any) bool) []Finding {
	where := Finding{Parameter: p.in + " " + p.name}
	texts, depth := said, 0
	switch {
	case p.list && !p.explode:
		texts, depth = strings.Split(strings.Join(said, ","), ","), 1
	case p.list:
		depth = 1
	case len(said) > 1:
		where.Detail = "is there more than once"
		return []Finding{where}
	}
	looks, strides := p.schema.workOf(texts, depth)
	if looks > maxAsked || strides > maxStrides {
		where.Detail = "holds more than can be held against the document"
		return []Finding{where}
	}
	var first any
	if p.list {
		list, ok := p.fitsAsList(texts, looks <= maxTold, fits)
		if ok {
			return nil
		}
		first = list
	}
	if len(said) == 1 && (!p.list || p.kinds != 0) {
		v, also := p.kinds.read(said[0])
		if fits(p.schema, v) || also && fits(p.schema, strings.TrimSpace(said[0])) {
			return nil
		}
		if !p.list {
			first = v
		}
	}
	if looks > maxTold {
		where.Detail = "does not fit the document, and is too long to say where"
		return []Finding{where}
	}
	return p.schema.judge(first, func([]string) Finding { return where })
}

// fitsAsList also returns the first reading. short: its items may be held against schemas by themselves.
func (p *parameter) fitsAsList(texts []string, short bool, fits func(*Schema, any) bool) (first []any, ok bool) {
	first = make([]any, len(texts))
	var two []int // items of two readings
	for i, s := range texts {
		v, also := p.items.read(s)
		if first[i] = v; also {
			two = append(two, i)
		}
	}
	if fits(p.schema, first) {
		return first, true
	}
	if len(two) == 0 {
		return first, false
	}
	list := slices.Clone(first)
	for _, i := range two {
		list[i] = strings.TrimSpace(texts[i])
	}
	if fits(p.schema, list) {
		return first, true
	}
	if len(two) > maxAlone || !short {
		return first, false
	}
	for _, f := range p.forms {
		mixed := 0
		for _, i := range two {
			if list[i] = first[i]; f.at(i) != nil && !fits(f.at(i), first[i]) {
				list[i], mixed = strings.TrimSpace(texts[i]), mixed+1
			}
		}
		if mixed > 0 && mixed < len(two) && fits(p.schema, list) {
			return first, true
		}
	}
	return first, false
}

// fits says whether a value fits, without memory for each thing in it that does not.
func (s *Schema) fits(v any) bool {
	switch v.(type) {
	case []any, map[string]any:
		return s.not.Validate(v) != nil
	}
	return s.of.Validate(v) == nil // which is less where it fits
}

// workOf is work for texts that lie at a depth, whatever they are read as.
func (s *Schema) workOf(texts []string, depth int) (looks, strides float64) {
	here := s.looks[min(depth, len(s.looks)-1)]
	for _, t := range texts {
		looks += here
		strides += float64(min(len(t), maxMatched)+1) * s.texts * max(1, here)
	}
	return looks, strides
}

// sized are the formats of numbers of OpenAPI's, of which a JSON Schema's own formats know nothing.
func sized(c *jsonschema.Compiler) {
	for name, bits := range map[string]int{"int32": 32, "int64": 64} {
		c.RegisterFormat(&jsonschema.Format{Name: name, Validate: func(v any) error {
			n, ok := v.(json.Number)
			if !ok {
				return nil // it is about numbers alone, and there are those who write int64 as text
			}
			if _, err := strconv.ParseInt(string(n), 10, bits); err == nil {
				return nil
			}
			if !whole(string(n), bits) {
				return errors.New("is no whole number of " + strconv.Itoa(bits) + " bits")
			}
			return nil
		}})
	}
}

// whole says whether a number that is not written as one is a whole number of so many bits: 1.0 and 1e3 are. What is far too big
// or a fraction is known before it is reckoned with exactly, which for an exponent of three digits takes long.
func whole(n string, bits int) bool {
	f, _ := strconv.ParseFloat(n, 64) // of too many it makes infinity, of too few nothing
	switch f = math.Abs(f); {
	case f < 1:
		mantissa, _, _ := strings.Cut(strings.ToLower(n), "e")
		return !strings.ContainsAny(mantissa, "123456789")
	case f > math.Ldexp(1, bits):
		return false
	}
	r, ok := new(big.Rat).SetString(n)
	if !ok || !r.IsInt() || !r.Num().IsInt64() {
		return false
	}
	i := r.Num().Int64()
	return bits == 64 || int64(int32(i)) == i
}
