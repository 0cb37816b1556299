// Package filter owns the language in which an operator says which things of a list he wants: a small part of AIP-160 over
// the fields of messages, as manifests and answers spell them.
//
//	zone=emea status!=active (name="eu-*" OR hosts:example) NOT drain:* labels.team=billing
//
// It never fetches, orders or counts. Pure: no clock, no state, nothing survives; a Filter may be used by any number of
// goroutines at once. Parse refuses what it does not know, and bounds its own work, so that any text may come from outside.
package filter

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/shared/fault"
)

// Limits of one filter.
const (
	MaxBytes = 1024
	MaxTerms = 64 // comparisons
	MaxDepth = 16 // of parentheses and NOT
)

// Reasons of refusal.
const (
	ReasonSyntax = "FILTER_INVALID"
	ReasonField  = "FILTER_FIELD_UNKNOWN"
)

// Filter says which messages are wanted. The zero value, and nil, want all.
type Filter struct{ want node }

// Match says whether something is wanted. parts are messages of the types that Parse was given, in that order.
func (f *Filter) Match(parts ...protoreflect.Message) bool {
	return f == nil || f.want == nil || f.want.match(parts)
}

// node is a part of a filter.
type node interface {
	match(parts []protoreflect.Message) bool
}

type (
	and  []node
	or   []node
	not  struct{ node }
	term struct {
		part int // whose field it is
		path []protoreflect.FieldDescriptor
		name string // of a label, whose value is asked for: an element "name=value" of a list
		op   string
		text string
		num  float64       // of a number's field
		at   time.Time     // of a timestamp's
		dur  time.Duration // of a duration's
	}
)

func (a and) match(p []protoreflect.Message) bool {
	return !slices.ContainsFunc(a, func(n node) bool { return !n.match(p) })
}
func (o or) match(p []protoreflect.Message) bool {
	return slices.ContainsFunc(o, func(n node) bool { return n.match(p) })
}
func (n not) match(p []protoreflect.Message) bool { return !n.node.match(p) }

// match holds if any value at the path fits; != holds if none equals, so that it is NOT = for lists as well.
func (t *term) match(parts []protoreflect.Message) bool {
	if t.op == "!=" {
		equal := *t
		equal.op = "="
		return !equal.match(parts)
	}
	return t.walk(parts[t.part], t.path)
}

func (t *term) walk(m protoreflect.Message, path []protoreflect.FieldDescriptor) bool {
	f := path[0]
	if t.name != "" {
		l := m.Get(f).List()
		for i := range l.Len() {
			if value, ok := strings.CutPrefix(l.Get(i).String(), t.name+"="); ok {
				return t.op == ":" && t.text == "*" || t.compareText(value)
			}
		}
		return false
	}
	if t.op == ":" && t.text == "*" && len(path) == 1 {
		return m.Has(f)
	}
	if f.IsList() {
		l := m.Get(f).List()
		for i := range l.Len() {
			if t.value(l.Get(i), path) {
				return true
			}
		}
		return false
	}
	if f.Kind() == protoreflect.MessageKind && !m.Has(f) {
		return false
	}
	return t.value(m.Get(f), path)
}

func (t *term) value(v protoreflect.Value, path []protoreflect.FieldDescriptor) bool {
	if len(path) > 1 {
		return t.walk(v.Message(), path[1:])
	}
	switch f := path[0]; f.Kind() {
	case protoreflect.StringKind:
		return t.compareText(v.String())
	case protoreflect.BoolKind:
		return strconv.FormatBool(v.Bool()) == t.text
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return ordered(t.op, compare(v.Float(), t.num))
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return ordered(t.op, compare(float64(v.Uint()), t.num))
	case protoreflect.MessageKind:
		switch w := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return ordered(t.op, w.AsTime().Compare(t.at))
		case *durationpb.Duration:
			return ordered(t.op, compare(w.AsDuration(), t.dur))
		}
		return false
	default:
		return ordered(t.op, compare(float64(v.Int()), t.num))
	}
}

func (t *term) compareText(have string) bool {
	switch t.op {
	case ":":
		return strings.Contains(strings.ToLower(have), strings.ToLower(t.text))
	case "=":
		return wild(t.text, have)
	}
	return ordered(t.op, strings.Compare(have, t.text))
}

// wild takes a * at the beginning, at the end or at both.
func wild(pattern, have string) bool {
	begin, open := strings.CutSuffix(pattern, "*")
	end, opened := strings.CutPrefix(begin, "*")
	switch {
	case open && opened:
		return strings.Contains(have, end)
	case open:
		return strings.HasPrefix(have, begin)
	case opened:
		return strings.HasSuffix(have, end)
	}
	return have == pattern
}

func compare[T int64 | float64 | time.Duration](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func ordered(op string, c int) bool {
	switch op {
	case "=":
		return c == 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	}
	return op == ">=" && c >= 0
}

// Parse reads a filter over the fields of some types: a name is looked for in one after the other. "spec." before a name
// may be left out or written, since a manifest has it. A blank text wants all.
func Parse(text string, types ...protoreflect.MessageDescriptor) (*Filter, error) {
	if len(text) > MaxBytes {
		return nil, fault.New(fault.TooLarge, ReasonSyntax, "the filter holds %d bytes, at most %d are read", len(text), MaxBytes).At("filter")
	}
	if !utf8.ValidString(text) {
		return nil, fault.New(fault.Invalid, ReasonSyntax, "the filter is not UTF-8 text").At("filter")
	}
	words, err := split(text)
	if err != nil {
		return nil, err
	}
	if len(words) == 0 {
		return &Filter{}, nil
	}
	p := parser{words: words, types: types}
	want, err := p.either(0)
	if err != nil {
		return nil, err
	}
	if p.at < len(words) {
		return nil, bad("%q closes nothing", words[p.at].text)
	}
	return &Filter{want}, nil
}

func bad(format string, args ...any) error {
	return fault.New(fault.Invalid, ReasonSyntax, "filter: "+format+"; write for example: zone=emea NOT status=active", args...).At("filter")
}

type word struct {
	text   string
	quoted bool
	sign   bool // an operator or a parenthesis
}

func split(text string) (out []word, err error) {
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case c == '(' || c == ')' || c == '=' || c == ':':
			out, i = append(out, word{text: text[i : i+1], sign: true}), i+1
		case c == '!' || c == '<' || c == '>':
			n := 1
			if i+1 < len(text) && text[i+1] == '=' {
				n = 2
			}
			if c == '!' && n == 1 {
				return nil, bad("a ! stands alone")
			}
			out, i = append(out, word{text: text[i : i+n], sign: true}), i+n
		case c == '"' || c == '\'':
			end := strings.IndexByte(text[i+1:], c)
			if end < 0 {
				return nil, bad("a quote is not closed")
			}
			out, i = append(out, word{text: text[i+1 : i+1+end], quoted: true}), i+end+2
		default:
			begin := i
			for i < len(text) && !strings.ContainsRune(" \t\n\r()=:!<>\"'", rune(text[i])) {
				// A time has colons: they belong to a value that begins with a digit.
				i++
				if i < len(text) && text[i] == ':' && len(out) > 0 && out[len(out)-1].sign && text[begin] >= '0' && text[begin] <= '9' {
					i++
				}
			}
			one := text[begin:i]
			if strings.ContainsFunc(one, func(r rune) bool { return unicode.IsControl(r) }) {
				return nil, bad("a character of %q is not text", one)
			}
			out = append(out, word{text: one})
		}
	}
	return out, nil
}

type parser struct {
	words []word
	at    int
	terms int
	types []protoreflect.MessageDescriptor
}

func (p *parser) is(text string) bool {
	return p.at < len(p.words) && !p.words[p.at].quoted && p.words[p.at].text == text
}

// either reads what OR joins; AND, written or not, binds closer, as everywhere but in AIP-160.
func (p *parser) either(depth int) (node, error) {
	var all or
	for {
		one, err := p.both(depth)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
		if !p.is("OR") {
			break
		}
		p.at++
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return all, nil
}

func (p *parser) both(depth int) (node, error) {
	var all and
	for {
		one, err := p.one(depth)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
		if p.is("AND") {
			p.at++
			continue
		}
		if p.at == len(p.words) || p.is(")") || p.is("OR") {
			break
		}
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return all, nil
}

func (p *parser) one(depth int) (node, error) {
	if depth > MaxDepth {
		return nil, bad("it is nested deeper than %d", MaxDepth)
	}
	if p.at == len(p.words) {
		return nil, bad("it ends where a comparison should follow")
	}
	switch {
	case p.is("NOT"):
		p.at++
		n, err := p.one(depth + 1)
		return not{n}, err
	case p.is("("):
		p.at++
		n, err := p.either(depth + 1)
		if err != nil {
			return nil, err
		}
		if !p.is(")") {
			return nil, bad("a ( is not closed")
		}
		p.at++
		return n, nil
	}
	return p.term()
}

func (p *parser) term() (node, error) {
	field := p.words[p.at]
	if field.sign || field.quoted {
		return nil, bad("%q stands where the name of a field should", field.text)
	}
	if p.terms++; p.terms > MaxTerms {
		return nil, bad("it has more than %d comparisons", MaxTerms)
	}
	if p.at+2 >= len(p.words) || !p.words[p.at+1].sign || p.words[p.at+2].sign {
		return nil, bad("after %s a sign (= != : < <= > >=) and a value should follow", field.text)
	}
	t := &term{op: p.words[p.at+1].text, text: p.words[p.at+2].text}
	if t.op == "(" || t.op == ")" {
		return nil, bad("after %s a sign (= != : < <= > >=) and a value should follow", field.text)
	}
	p.at += 3
	if err := t.resolve(field.text, p.types); err != nil {
		return nil, err
	}
	return t, t.read(field.text)
}

func (t *term) resolve(name string, types []protoreflect.MessageDescriptor) error {
	var known []string
	segments := strings.Split(strings.TrimPrefix(name, "spec."), ".")
	for i, d := range types {
		if d.Fields().ByName(protoreflect.Name(segments[0])) != nil {
			t.part = i
			for n, s := range segments {
				f := d.Fields().ByName(protoreflect.Name(s))
				if f == nil || f.IsMap() {
					known = names(d)
					break
				}
				t.path = append(t.path, f)
				if n == len(segments)-1 {
					return nil
				}
				if f.Name() == "labels" && f.IsList() && f.Kind() == protoreflect.StringKind && n == len(segments)-2 {
					t.name = segments[n+1]
					return nil
				}
				if d = f.Message(); d == nil || wellKnown(d) {
					return fault.New(fault.Invalid, ReasonField, "filter: %s has no field below %s", name, f.Name()).At("filter")
				}
			}
			break
		}
		known = append(known, names(d)...)
	}
	return fault.New(fault.Invalid, ReasonField, "filter: no field %q; there are %s", name, strings.Join(known, ", ")).At("filter")
}

func names(d protoreflect.MessageDescriptor) (out []string) {
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.ContainingOneof() == nil {
			out = append(out, string(f.Name()))
		}
	}
	return out
}

func wellKnown(d protoreflect.MessageDescriptor) bool {
	return d.ParentFile().Package() == "google.protobuf"
}

// read makes the value what its field is, once.
func (t *term) read(name string) error {
	if t.op == ":" && t.text == "*" {
		return nil
	}
	f := t.path[len(t.path)-1]
	wrong := func(what string) error {
		return fault.New(fault.Invalid, ReasonSyntax, "filter: %s%s%s: %s", name, t.op, t.text, what).At("filter")
	}
	if t.op == ":" && f.Kind() != protoreflect.StringKind {
		t.op = "=" // a list of numbers has one, as AIP-160 says it
	}
	var err error
	switch f.Kind() {
	case protoreflect.StringKind:
		return nil
	case protoreflect.BoolKind:
		if t.text != "true" && t.text != "false" || t.op != "=" && t.op != "!=" {
			return wrong("it is true or false")
		}
	case protoreflect.BytesKind, protoreflect.EnumKind:
		return wrong("this field cannot be compared, only asked for with :*")
	case protoreflect.MessageKind:
		switch f.Message().FullName() {
		case "google.protobuf.Timestamp":
			if t.at, err = time.Parse(time.RFC3339, t.text); err != nil {
				return wrong("it is a time such as 2026-11-26T03:00:00Z")
			}
		case "google.protobuf.Duration":
			if t.dur, err = time.ParseDuration(t.text); err != nil {
				return wrong("it is a duration such as 200ms or 1h")
			}
		default:
			return wrong("it has fields of its own: " + strings.Join(names(f.Message()), ", "))
		}
	default:
		if t.num, err = strconv.ParseFloat(t.text, 64); err != nil {
			return wrong("it is a number")
		}
	}
	return nil
}
