package proxy

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/shape"
)

// Early hints (103, RFC 8297) are passed on while the answer is not there yet, across a relay too. Only Link is: it is what
// clients act upon before an answer. Whatever else stands in a hint is the answer's to say, where it is read again: a cookie or a
// policy that came early would be in force although the answer may come from elsewhere. Other interim answers are between two
// neighbours, and are not passed on.

const (
	hintsMost = 8        // of one request; further ones are dropped
	hintLinks = 32       // values of Link in one of them
	hintBytes = 16 << 10 // in one of them
)

// hints are those of one request.
type hints struct {
	mu   sync.Mutex // covers both, and the answer's head until over
	n    int
	over bool // the answer begins, or something else the client is told
}

// close ends them: from now on the answer is its goroutine's alone.
func (h *hints) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}

// hint passes one on. Any attempt may call it, of whatever goroutine, also late.
func (x *exchange) hint(links []string) {
	n := 0
	for i, l := range links {
		if n += len(l); n > hintBytes || i == hintLinks {
			links = links[:i]
			break
		}
	}
	if len(links) == 0 || !x.r.ProtoAtLeast(1, 1) || x.lasts() {
		return
	}
	x.hints.mu.Lock()
	defer x.hints.mu.Unlock()
	if x.hints.over || x.hints.n == hintsMost {
		return
	}
	if !x.relayed && x.v.Route != nil && x.v.Route.Rewrite != nil { // what an answer may not say a hint does not say either
		said := http.Header{"Link": links}
		shape.Header(&x.v.Route.Rewrite.Response, said)
		if links = said["Link"]; len(links) == 0 {
			return
		}
	}
	x.hints.n++
	h := x.w.Header()
	kept := maps.Clone(h)
	clear(h)
	h["Link"] = links
	x.w.WriteHeader(http.StatusEarlyHints)
	clear(h)
	maps.Copy(h, kept)
}

// hinting has an attempt's interim answers seen, of which it may have as many as on any other road.
func (x *exchange) hinting() func(code int, h textproto.MIMEHeader) error {
	n := 0
	return func(code int, h textproto.MIMEHeader) error {
		if n++; n > interims {
			return errInterims
		}
		if code == http.StatusEarlyHints {
			x.hint(h["Link"])
		}
		return nil
	}
}

// hinted is ctx of an attempt whose hints are passed on.
func (x *exchange) hinted(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: x.hinting()})
}

// linksOf are the values of Link, in text of their own.
func linksOf(fields []http1.Field) (links []string) {
	for i := range fields {
		if f := &fields[i]; strings.EqualFold(f.Name, "Link") {
			links = append(links, strings.Clone(f.Value))
		}
	}
	return links
}

// hint writes an interim answer. Somebody else may be telling the client to send its body.
func (w *responder) hint() {
	if w.r.ProtoMinor == 0 {
		return
	}
	b := []byte("HTTP/1.1 103 Early Hints")
	for name, values := range w.header {
		for _, v := range values {
			b = field(b, name, clean(v))
		}
	}
	w.body.ask.Lock()
	defer w.body.ask.Unlock()
	w.c.write(append(b, "\r\n\r\n"...), time.Now())
}
