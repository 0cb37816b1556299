package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/graphql"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/shape"
	"bailiwick/shared/table"
	"bailiwick/shared/table/schema"
)

// answersItself answers what asks the edge and nobody behind it, without a key and for nothing: there is no row of it.
func (x *exchange) answersItself(a *asked) bool {
	api := x.table.API(a.Host)
	if api == nil || !x.table.Home(api) || check(x.table, a).Status != 0 {
		return false // decide says why
	}
	h := x.w.Header()
	if method, ok := shape.Preflight(a.Method, x.r.Header); ok && api.Shared {
		route, match := api.Route(method, a.Path)
		if match != policy.RouteFound || route.CORS == nil {
			return false
		}
		if x.overGratis() {
			return true
		}
		shape.AnswerPreflight(route.CORS, h, x.r.Header)
		x.written = true
		x.w.WriteHeader(http.StatusNoContent)
		return true
	}
	if a.Path == keysPath && a.Method == http.MethodGet && api.Auth != nil && api.Auth.Signed && x.p.cfg.Signer != nil {
		if x.overGratis() {
			return true
		}
		keys, err := x.p.cfg.Signer.Keys(x.began)
		if err != nil {
			return false
		}
		h["Content-Type"], h["Cache-Control"] = []string{"application/jwk-set+json"}, []string{"public, max-age=3600"}
		h["Content-Length"] = []string{strconv.Itoa(len(keys))}
		x.written = true
		x.w.Write(keys)
		return true
	}
	return false
}

// keysPath is where an API's edges publish the keys that sign who asks.
const keysPath = "/.well-known/bailiwick/jwks.json"

// rewrite changes the fields that go upstream, as the route says.
func (x *exchange) rewrite() {
	if x.v.Route != nil && x.v.Route.Rewrite != nil {
		shape.Header(&x.v.Route.Rewrite.Request, x.header)
	}
}

// reaimed is which path upstreams are asked for, and at which host. It is the edge of the upstream that rewrites them, also of
// what another edge accepted: both know the path that was asked for.
func (x *exchange) reaimed(host string) (*url.URL, string) {
	if x.v.Route == nil || x.v.Route.Rewrite == nil {
		return x.r.URL, host
	}
	path, raw := shape.Path(x.v.Route.Rewrite, x.r.URL.Path, x.r.URL.RawPath)
	return &url.URL{Path: path, RawPath: raw}, cmp.Or(x.v.Route.Rewrite.Host, host)
}

// reshape changes an answer as the route says. That is the accepting edge's to do.
func (x *exchange) reshape(h http.Header) {
	if x.relayed || x.v.Route == nil {
		return
	}
	if x.v.Route.Rewrite != nil {
		shape.Header(&x.v.Route.Rewrite.Response, h)
	}
	x.share(h)
}

// unsaid says whether the route takes a field out of answers, or says itself what stands there: then the upstream's does not come
// behind the body either.
func (x *exchange) unsaid(name string) bool {
	if x.relayed || x.v.Route == nil || x.v.Route.Rewrite == nil {
		return false
	}
	names := []string{textproto.CanonicalMIMEHeaderKey(name), textproto.CanonicalMIMEHeaderKey(http1.Dashed(name))}
	f := &x.v.Route.Rewrite.Response
	return slices.ContainsFunc(f.Remove, func(gone string) bool { return slices.Contains(names, gone) }) ||
		slices.ContainsFunc(f.Set, func(v table.Field) bool { return slices.Contains(names, v.Name) })
}

// share says whether the page that asks may read the answer, refusals included.
func (x *exchange) share(h http.Header) {
	if !x.relayed && x.v.Route != nil && x.v.Route.CORS != nil {
		shape.Share(x.v.Route.CORS, h, x.r.Header["Origin"])
	}
}

// examine holds a request against what its API says of it, before it costs an upstream anything.
func (x *exchange) examine() gate.Problem {
	r := x.v.Route
	if r == nil || r.Schema == nil && r.Document == nil && r.GraphQL == nil || x.body == nil && x.r.Method == http.MethodOptions {
		return gate.Problem{}
	}
	media := ""
	if said := x.r.Header["Content-Type"]; len(said) == 1 { // of two the upstream might take the other
		media = said[0]
	}
	var data []byte
	if x.body != nil {
		var problem gate.Problem
		if data, problem = x.whole(min(x.p.limit(r), schema.MaxBody)); problem.Status != 0 {
			return problem
		}
	}
	var found []schema.Finding
	switch {
	case x.body != nil && coded(x.r.Header["Content-Encoding"]) && (r.Schema != nil || r.GraphQL != nil || schema.JSON(media)): // what is read here is not what the upstream would read
		found = []schema.Finding{{Parameter: "header Content-Encoding", Detail: "is not identity: send the body as it is, so that it can be looked at"}}
	case r.Schema != nil && x.body == nil && (x.r.Method == http.MethodGet || x.r.Method == http.MethodHead || x.r.Method == http.MethodDelete):
	case r.Schema != nil && x.body != nil && !schema.JSON(media):
		found = []schema.Finding{{Parameter: "header Content-Type", Detail: "is not application/json, as the body has to be"}}
	case r.Schema != nil:
		of, err := r.Schema.Get()
		if err != nil {
			return undocumented
		}
		found = of.Body(data)
	case r.Document != nil:
		of, err := r.Document.Get()
		if err != nil {
			return undocumented
		}
		query, err := url.ParseQuery(x.r.URL.RawQuery)
		if err != nil {
			return gate.NewProblem(400, gate.ReasonInvalid, "The query is not encoded as it should be.")
		}
		known := false
		said := func(name string) []string {
			name = http.CanonicalHeaderKey(name)
			alone(x.header, name) // what is looked at here is what the upstream reads
			return x.r.Header[name]
		}
		found, known = of.Check(&schema.Request{Method: x.r.Method, Path: x.r.URL.Path, Query: query, Header: said, ContentType: media, Body: data})
		if !known {
			return gate.NewProblem(404, gate.ReasonRouteUnknown, "The API's document has no such path, or not with this method.")
		}
	}
	if len(found) == 0 && r.GraphQL != nil {
		return x.query(media, data)
	}
	if len(found) == 0 {
		return gate.Problem{}
	}
	problem := gate.NewProblem(400, gate.ReasonInvalid, "Mend what errors names; nothing was done.")
	problem.Errors = found
	return problem
}

// undocumented is what its API's document is no document to: nothing passes that was not held against it.
var undocumented = gate.NewProblem(503, gate.ReasonNotReady, "This edge cannot read what the API holds requests against; ask the provider of the API.")

func coded(said []string) bool {
	return len(said) > 1 || len(said) == 1 && said[0] != "" && !strings.EqualFold(said[0], "identity")
}

// query holds a GraphQL request against the route's bounds, and sets what it costs where the route counts that.
func (x *exchange) query(media string, data []byte) gate.Problem {
	r := x.v.Route
	query, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return gate.NewProblem(400, gate.ReasonQuery, "The query of the URL is not encoded as it should be.")
	}
	asked, err := graphql.Read(r.GraphQL, x.r.Method, query, media, data)
	if err != nil {
		return gate.NewProblem(400, gate.ReasonQuery, "The GraphQL request is not taken: "+err.Error()+".")
	}
	if r.Units == nil || r.Units.GraphQL == "" {
		return gate.Problem{}
	}
	switch r.Units.GraphQL {
	case policy.UnitsOfOperations:
		x.said = asked.Operations
		return gate.Problem{}
	case "cost":
		x.said = asked.Cost
	default:
		x.said = asked.Fields
	}
	switch {
	case asked.Persisted:
		return gate.NewProblem(400, gate.ReasonQuery, "What a query costs is counted here: send its document, not the name of one that is kept.")
	case x.said > r.Units.Most:
		return gate.NewProblem(400, gate.ReasonQuery, fmt.Sprintf("The GraphQL request is worth %d units, and one request costs %d at most: ask for less at a time.", x.said, r.Units.Most))
	}
	return gate.Problem{}
}

// whole reads the body, within a limit, and keeps it: it is sent on as it was read.
func (x *exchange) whole(limit int64) ([]byte, gate.Problem) {
	b := x.body
	if b.length > limit {
		return nil, bodyTooLarge(limit)
	}
	if b.kept != nil {
		return b.kept, gate.Problem{}
	}
	room := b.length
	if room < 0 {
		room = limit
	}
	if x.p.replays.Add(room) > replayTotal {
		x.p.replays.Add(-room)
		return nil, gate.NewProblem(503, gate.ReasonOverloaded, "Too many requests' bodies are being looked at; try again shortly.")
	}
	rc := http.NewResponseController(x.w)
	rc.SetReadDeadline(time.Now().Add(x.left(x.timeout())))
	data, err := io.ReadAll(io.LimitReader(b.src, limit+1))
	rc.SetReadDeadline(time.Time{})
	b.in.Store(int64(len(data)))
	b.touched.Store(true)
	tooLarge, _ := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge != nil || int64(len(data)) > limit:
		x.p.replays.Add(-room)
		return nil, bodyTooLarge(limit)
	case err != nil || b.length >= 0 && int64(len(data)) != b.length:
		x.p.replays.Add(-room)
		return nil, b.incomplete(err)
	}
	x.p.replays.Add(int64(len(data)) - room)
	b.mu.Lock()
	b.kept, b.length = data, int64(len(data))
	b.mu.Unlock()
	return data, gate.Problem{}
}
