package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// Document is a compiled OpenAPI document: what it says of requests. What it says of answers, of security and of servers other
// than the path that they begin with is passed over: a key is the edge's to ask for.
type Document struct {
	bases []string // paths before those of the document, longest first
	paths []path   // those with fewest parameters first
}

type path struct {
	segments   []string // hole: a parameter
	names      []string // of the parameters
	operations map[string]*operation
}

// hole is no segment of any path.
const hole = "\x00"

type operation struct {
	parameters []parameter
	required   bool               // the body
	bodies     map[string]*Schema // by media type; nil: any body of the type
	bodyless   bool               // the document speaks of no body
}

type parameter struct {
	in, name string
	required bool
	explode  bool
	list     bool
	deep     bool    // its fields stand as name[field]
	kinds    kinds   // that a text may be read as; of a list: if it need not be one
	items    kinds   // likewise its items
	forms    []form  // schemas that speak of items, where one may be read in two ways
	schema   *Schema // nil: only its presence is looked at
}

// Request is what is held against a Document.
type Request struct {
	Method, Path string
	Query        url.Values
	Header       func(name string) []string // by its canonical name
	ContentType  string
	Body         []byte // nil: none
}

var methods = []string{"get", "head", "post", "put", "patch", "delete", "options"}

// CompileOpenAPI reads an OpenAPI document (3.0, 3.1), in JSON or YAML.
func CompileOpenAPI(text string) (*Document, error) {
	d, err := read(text)
	if err != nil {
		return nil, err
	}
	root, _ := d.root.(map[string]any)
	version, _ := root["openapi"].(string)
	if n, ok := root["openapi"].(json.Number); ok {
		version = n.String()
	}
	if !strings.HasPrefix(version, "3.0") && !strings.HasPrefix(version, "3.1") {
		return nil, d.at("/openapi", "this is no OpenAPI document of version 3.0 or 3.1")
	}
	data, err := json.Marshal(d.root)
	if err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	loaded, err := openapi3.NewLoader().LoadFromData(data)
	if err != nil {
		return nil, fmt.Errorf("read the document: %s", cut(err.Error()))
	}
	if err := loaded.Validate(context.Background(), openapi3.DisableExamplesValidation(), openapi3.DisableSchemaPatternValidation()); err != nil {
		return nil, fmt.Errorf("the document is no OpenAPI: %s", cut(err.Error()))
	}
	if strings.HasPrefix(version, "3.0") {
		modern(d.root)
	}
	out := &Document{bases: bases(root["servers"])}
	paths, _ := root["paths"].(map[string]any)
	for _, template := range slices.Sorted(maps.Keys(paths)) {
		if !strings.HasPrefix(template, "/") {
			continue // an extension
		}
		p := path{operations: map[string]*operation{}}
		for seg := range strings.SplitSeq(template[1:], "/") {
			if strings.HasPrefix(seg, "{") && strings.HasSuffix(seg, "}") {
				p.segments, p.names = append(p.segments, hole), append(p.names, seg[1:len(seg)-1])
				continue
			}
			if strings.ContainsAny(seg, "{}") {
				return nil, d.at("/paths/"+escape(template), "a parameter is a whole segment of a path")
			}
			p.segments = append(p.segments, seg)
		}
		at, item, err := d.deref("/paths/" + escape(template))
		if err != nil {
			return nil, err
		}
		for _, m := range methods {
			if item[m] == nil {
				continue
			}
			if p.operations[strings.ToUpper(m)], err = d.operation(at, at+"/"+m); err != nil {
				return nil, err
			}
		}
		out.paths = append(out.paths, p)
	}
	slices.SortStableFunc(out.paths, func(a, b path) int { return len(a.names) - len(b.names) })
	return out, nil
}

// deref follows $refs to an object.
func (d *document) deref(pointer string) (string, map[string]any, error) {
	for range 16 {
		v, _ := d.find(pointer)
		m, ok := v.(map[string]any)
		if !ok {
			return "", nil, d.at(pointer, "there is no object here")
		}
		ref, ok := m["$ref"].(string)
		if !ok {
			return pointer, m, nil
		}
		if pointer, ok = d.target(ref); !ok {
			return "", nil, d.at(pointer, "$ref %q names nothing in the document", cut(ref))
		}
	}
	return "", nil, d.at(pointer, "more than 16 $refs in a row")
}

// passedOver are headers that OpenAPI speaks of elsewhere: a parameter of such a name "SHALL be ignored" (3.0.4, Parameter Object).
// A document that asks for Authorization would else refuse who shows a key in another header.
var passedOver = []string{"accept", "content-type", "authorization"}

func (d *document) operation(item, at string) (*operation, error) {
	op := &operation{bodies: map[string]*Schema{}}
	for _, of := range []string{item, at} { // what an operation says of a parameter stands in place of its path's
		v, _ := d.find(of)
		list, _ := v.(map[string]any)["parameters"].([]any)
		for i := range list {
			p, err := d.parameter(fmt.Sprintf("%s/parameters/%d", of, i))
			if err != nil {
				return nil, err
			}
			if p.in == "header" && slices.Contains(passedOver, strings.ToLower(p.name)) {
				continue
			}
			op.parameters = append(slices.DeleteFunc(op.parameters, func(o parameter) bool { return o.in == p.in && o.name == p.name }), p)
		}
	}
	v, _ := d.find(at)
	if v.(map[string]any)["requestBody"] == nil {
		op.bodyless = true
		return op, nil
	}
	at, body, err := d.deref(at + "/requestBody")
	if err != nil {
		return nil, err
	}
	op.required, _ = body["required"].(bool)
	content, _ := body["content"].(map[string]any)
	for _, media := range slices.Sorted(maps.Keys(content)) {
		where := at + "/content/" + escape(media)
		kind, _, err := mime.ParseMediaType(media)
		if err != nil {
			return nil, d.at(where, "%q is no media type", media)
		}
		var s *Schema
		if m, _ := content[media].(map[string]any); m["schema"] != nil && isJSON(kind) {
			if s, err = d.compile(where + "/schema"); err != nil {
				return nil, err
			}
		}
		op.bodies[kind] = s
	}
	return op, nil
}

// JSON says whether a Content-Type is JSON's, and of text as it is read here.
func JSON(contentType string) bool {
	media, params, err := mime.ParseMediaType(contentType)
	return err == nil && isJSON(media) && UTF8(params)
}

// UTF8 says whether the parameters of a media type name no other charset. What a body says in UTF-7 may be something else than
// what the same bytes say in UTF-8, and there are servers that believe the parameter.
func UTF8(params map[string]string) bool {
	charset, said := params["charset"]
	return !said || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "utf8") || strings.EqualFold(charset, "us-ascii")
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
}

func (d *document) parameter(at string) (p parameter, err error) {
	at, m, err := d.deref(at)
	if err != nil {
		return p, err
	}
	p.in, _ = m["in"].(string)
	p.name, _ = m["name"].(string)
	p.required, _ = m["required"].(bool)
	style, _ := m["style"].(string)
	p.explode = p.in == "query" || p.in == "cookie"
	if e, ok := m["explode"].(bool); ok {
		p.explode = e
	}
	if p.deep = style == "deepObject"; m["schema"] == nil || style != "" && style != "form" && style != "simple" {
		return p, nil
	}
	s := d.says(at+"/schema", 0)
	if s.named&anObject != 0 {
		if p.explode && (p.in == "query" || p.in == "cookie") { // its fields stand by themselves: its own name does not come
			p.required = false
		}
		return p, nil
	}
	p.kinds = s.texts()
	if p.list = s.named&anArray != 0; p.list {
		if p.in == "cookie" { // as a form writes it, with & between, no two servers read it alike
			return p, nil
		}
		if p.items, p.forms, err = d.itemsOf(s); err != nil {
			return p, err
		}
	}
	p.schema, err = d.compile(at + "/schema")
	return p, err
}

// modern makes of OpenAPI 3.0's own words those of JSON Schema.
func modern(v any) {
	switch v := v.(type) {
	case map[string]any:
		if t, ok := v["type"].(string); ok && v["nullable"] == true {
			v["type"] = []any{t, "null"}
		}
		for bound, exclusive := range map[string]string{"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"} {
			if is, ok := v[exclusive].(bool); ok {
				delete(v, exclusive)
				if n := v[bound]; is && n != nil {
					v[exclusive] = n
					delete(v, bound)
				}
			}
		}
		for _, in := range v {
			modern(in)
		}
	case []any:
		for _, in := range v {
			modern(in)
		}
	}
}

// bases are the paths of the servers' URLs.
func bases(servers any) (out []string) {
	list, _ := servers.([]any)
	for _, s := range list {
		m, _ := s.(map[string]any)
		text, _ := m["url"].(string)
		if u, err := url.Parse(text); err == nil && !strings.Contains(text, "{") {
			out = append(out, strings.TrimRight(u.Path, "/"))
		}
	}
	if len(out) == 0 {
		out = []string{""}
	}
	slices.SortFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}

// Check holds a request against the document. known: it has the path and the method.
func (d *Document) Check(r *Request) (found []Finding, known bool) {
	op, values := d.operation(r.Method, r.Path)
	if op == nil {
		return nil, false
	}
	for i := range op.parameters {
		if len(found) >= MaxErrors {
			return found, true
		}
		found = append(found, op.parameters[i].check(r, values)...)
	}
	switch {
	case r.Body == nil && op.required:
		return append(found, Finding{Pointer: "#", Detail: "a body is missing"}), true
	case r.Body == nil, op.bodyless:
		return found, true
	}
	media, params, err := mime.ParseMediaType(r.ContentType)
	s, listed := op.bodies[media]
	for _, any := range []string{media[:max(strings.IndexByte(media, '/'), 0)] + "/*", "*/*"} {
		if !listed {
			s, listed = op.bodies[any]
		}
	}
	switch {
	case err != nil || !listed:
		return append(found, Finding{Parameter: "header Content-Type", Detail: "is none of " + strings.Join(slices.Sorted(maps.Keys(op.bodies)), ", ")}), true
	case s != nil && !UTF8(params):
		return append(found, Finding{Parameter: "header Content-Type", Detail: "names a charset that JSON has not: it is UTF-8"}), true
	case s != nil:
		found = append(found, s.Body(r.Body)...)
	}
	return found[:min(len(found), MaxErrors)], true
}

func (d *Document) operation(method, asked string) (*operation, map[string]string) {
	for _, base := range d.bases {
		rest, ok := strings.CutPrefix(asked, base)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		segments := strings.Split(strings.TrimPrefix(rest, "/"), "/")
		for i := range d.paths {
			p := &d.paths[i]
			values, ok := p.matches(segments)
			if !ok {
				continue
			}
			op := p.operations[method]
			if op == nil && method == "HEAD" {
				op = p.operations["GET"]
			}
			if op != nil {
				return op, values
			}
		}
	}
	return nil, nil
}

func (p *path) matches(segments []string) (map[string]string, bool) {
	if len(segments) != len(p.segments) {
		return nil, false
	}
	var values map[string]string
	n := 0
	for i, s := range p.segments {
		switch {
		case s == hole:
			if segments[i] == "" {
				return nil, false
			}
			if values == nil {
				values = map[string]string{}
			}
			values[p.names[n]] = segments[i]
			n++
		case s != segments[i]:
			return nil, false
		}
	}
	return values, true
}

func (p *parameter) check(r *Request, values map[string]string) []Finding {
	where := Finding{Parameter: p.in + " " + p.name}
	var said []string
	switch p.in {
	case "path":
		if v, ok := values[p.name]; ok {
			said = []string{v}
		}
	case "query":
		if said = r.Query[p.name]; p.deep {
			for name, values := range r.Query {
				if strings.HasPrefix(name, p.name+"[") {
					said = values
				}
			}
		}
	case "header":
		said = r.Header(p.name)
	case "cookie":
		said = cookies(r.Header("Cookie"), p.name)
	}
	if len(said) == 0 {
		if p.required {
			where.Detail = "is missing"
			return []Finding{where}
		}
		return nil
	}
	if p.schema == nil {
		return nil
	}
	if p.in == "cookie" { // a browser has one for each path, and which of them counts is the server's affair: all have to be good
		for _, s := range said {
			if found := p.hold([]string{s}, (*Schema).fits); len(found) > 0 {
				return found
			}
		}
		return nil
	}
	return p.hold(said, (*Schema).fits)
}

// cookies are the values of the cookies of a name, as they came (RFC 6265: quotes, if any, are their own).
func cookies(headers []string, name string) (values []string) {
	for _, h := range headers {
		for pair := range strings.SplitSeq(h, ";") {
			if key, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && strings.TrimSpace(key) == name {
				values = append(values, strings.TrimSpace(value))
			}
		}
	}
	return values
}
