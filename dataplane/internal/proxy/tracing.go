package proxy

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/trace"
)

// tracing is what traces have to do with one request. Where it is zero, what a client says of its trace passes as it came.
type tracing struct {
	trace *trace.Trace // nil: it has none here
	odd   bool         // what its client says of a trace cannot be read, and goes no further
}

// follows says whether anything is to be done: then it is an exchange.
func (c *call) follows() bool { return c.tracing != tracing{} }

// follow begins the trace of a request on the common road, if it has one.
func (c *call) follow(fields []http1.Field) {
	if c.p.cfg.Traces == nil {
		return
	}
	var parent string
	n, state := 0, false
	for i := range fields {
		switch f := &fields[i]; {
		case len(f.Name) == len("traceparent") && strings.EqualFold(f.Name, "traceparent"):
			parent = f.Value
			n++
		case len(f.Name) == len("tracestate") && strings.EqualFold(f.Name, "tracestate"):
			state = true
		}
	}
	said, ok := read(parent, n)
	c.odd = !ok || state && n == 0
	if c.trace = c.p.cfg.Traces.Begin(c.began, &said, trace.Client); c.trace == nil || !state || n == 0 {
		return
	}
	var states []string
	for i := range fields {
		if f := &fields[i]; strings.EqualFold(f.Name, "tracestate") {
			states = append(states, f.Value)
		}
	}
	c.trace.Carry(trace.ReadState(states))
}

// followed is follow for what net/http's types hold.
func (c *call) followed(h http.Header, who trace.Asker) {
	if c.p.cfg.Traces == nil {
		return
	}
	parents, states := h["Traceparent"], h["Tracestate"]
	parent := ""
	if len(parents) > 0 {
		parent = parents[0]
	}
	said, ok := read(parent, len(parents))
	c.odd = !ok || len(states) > 0 && len(parents) == 0
	if c.trace = c.p.cfg.Traces.Begin(c.began, &said, who); c.trace != nil && said.Given() && len(states) > 0 {
		c.trace.Carry(trace.ReadState(states))
	}
}

// read is the context of n fields, of which parent is one. Two are none: whoever is next might take the other.
func read(parent string, n int) (trace.Context, bool) {
	switch n {
	case 0:
		return trace.Context{}, true
	case 1:
		return trace.ReadParent(parent)
	}
	return trace.Context{}, false
}

// received begins the trace of a request that another region's edge accepted. Another zone's trace ends at the border, whatever
// its edges send.
func (c *call) received(h http.Header) {
	if c.v.API.Foreign {
		for _, name := range relay.Trace {
			delete(h, name)
		}
	}
	c.followed(h, trace.Peer)
}

// untrace takes what is not sent on out of the fields to send.
func (x *exchange) untrace() {
	if x.follows() {
		delete(x.header, "Traceparent")
		delete(x.header, "Tracestate")
	}
}

// attempts begins an attempt's span.
func (x *exchange) attempts(res *result) { res.span = x.trace.Attempt() }

// under are the fields of an attempt: those it is given, which another attempt may be reading, and where it stands in the trace.
func (x *exchange) under(res *result, h http.Header) http.Header {
	if res.span == nil {
		return h
	}
	h = maps.Clone(h)
	h["Traceparent"] = []string{res.span.Parent()}
	if state := x.trace.State(); state != "" {
		h["Tracestate"] = []string{state}
	}
	return h
}

// attempted ends an attempt's span: what is said of it is when its answer began, or why there is none.
func (x *exchange) attempted(res *result, c *failover.Candidate) {
	if res.span == nil {
		return
	}
	s := trace.Span{Method: methodOf(x.r.Method), API: x.v.API.Name, Region: c.To, Relayed: !c.Home()}
	if c.Home() {
		s.Region = x.p.cfg.Region
		if c.Target.Base != nil {
			s.Target = c.Target.Base.Host
		}
	}
	if res.resp != nil {
		s.Status = res.resp.StatusCode
	} else {
		s.Failure = failure(res.err)
	}
	res.span.End(s)
}

// failure is why an attempt has no answer, in one word: an error's own may have come from anywhere.
func failure(err error) string {
	var refused *relay.Error
	switch {
	case errors.Is(err, errLate):
		return "timeout"
	case errors.Is(err, errHedged):
		return "outrun"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.As(err, &refused) && refused.Rule != "":
		return "refused"
	case errors.As(err, &refused) && refused.Unreachable:
		return "unreachable"
	}
	return "failed"
}

// traced ends the request's span. What asked for no API has no trace, as it has no line in the access log.
func (c *call) traced() {
	t := c.trace
	if t == nil {
		return
	}
	c.trace = nil
	if c.v.API == nil {
		t.Drop()
		return
	}
	s := trace.Span{Method: methodOf(c.method), Protocol: protocols[min(int(c.proto), len(protocols)-1)], API: c.v.API.Name, Plan: c.v.Plan, Reason: c.reason, Region: c.served,
		Request: c.id, Status: c.status, Attempts: int(c.tries.Load()), Cached: c.hit, Relayed: c.abroad.Load(), Received: c.relayed}
	if c.v.Plan != "" || c.relayed {
		s.Class = c.v.Class.String()
	}
	if c.v.Route != nil {
		s.Route = c.v.Route.Name
	}
	if c.counted {
		s.Outcome = c.kept.Outcome.String()
	}
	if c.broken {
		s.Failure = "failed"
	}
	t.End(s)
}

var protocols = [...]string{"", "1.1", "2", "3"}
