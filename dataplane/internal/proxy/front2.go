package proxy

import (
	"net/http"
	"strings"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/relay"
)

// front2 fronts a common request over HTTP/2.
type front2 struct {
	c      *conn
	s      *http2.Stream
	split  int  // where in k.out the answer's body begins
	active bool // the request has a call that is not closed
}

// stream serves a request over HTTP/2.
func (c *conn) stream(s *http2.Stream) {
	if c.door.fast == nil {
		s.HTTP(c.door.Handler.ServeHTTP)
		return
	}
	k := c.door.works.Get().(*work)
	f := &k.two
	*f = front2{c: c, s: s}
	defer f.done(k)
	if body, whole := s.Body(); whole {
		k.from, k.req, k.body, k.remote, k.secure, k.via = f, &s.Request, body, c.remote, true, "2.0 bailiwick"
		if k.common(c.door.fast, smallBody, c.sni) {
			k.call.begin(c.door.fast, c.client)
			k.call.proto = 2
			f.active = true
			if _, ok := k.admit(c.door.fast); ok {
				k.serve()
			}
			return
		}
	}
	s.HTTP(c.door.Handler.ServeHTTP)
}

const smallBody = 4 << 10 // of a common request over HTTP/2

// done is the end, also where a panic passes: no request with a valid key is without a row.
func (f *front2) done(k *work) {
	door := f.c.door
	if f.active {
		k.call.close()
	}
	*f = front2{}
	k.done()
	door.works.Put(k)
}

// exchange implements front.
func (f *front2) exchange(k *work, do func(e *exchange)) bool {
	k.ask.Host = strings.Clone(k.ask.Host)
	f.s.HTTP(func(w http.ResponseWriter, r *http.Request) {
		e := &exchange{call: &k.call, w: w, r: r}
		f.active = false
		defer e.close()
		e.sign()
		do(e)
	})
	return true
}

// head implements front.
func (f *front2) head(k *work, a *http1.Answer) {
	x := &k.call
	b := http2.AppendStatus(k.out[:0], a.Status)
	limit, policy := x.v.Limits()
	isDated, length := false, false
	for i := range a.Fields {
		at := &a.Fields[i]
		switch is := classOf(at.Name); {
		case at.Kind == http1.ContentLength:
			if a.Status == 204 {
				continue
			}
			length = true
		case is == stays, is == hidden, is == limited && len(limit) > 0:
			continue
		case is == dated:
			isDated = true
		}
		b = http2.AppendField(b, at.Name, at.Value)
	}
	if !length && a.Length == 0 && a.Status != 204 && a.Status != 304 && k.req.Method != http.MethodHead {
		b = http2.AppendField(b, "content-length", "0")
	}
	if !isDated {
		b = appendDate(http2.AppendLength(http2.AppendName(b, "date"), len(http.TimeFormat)), x.began)
	}
	b = appendID(http2.AppendLength(http2.AppendName(b, relay.HeaderRequestID), 36), x.id)
	b = http2.AppendField(b, "bailiwick-edge", x.p.cfg.Region)
	b = http2.AppendField(b, relay.HeaderServed, x.served)
	if alt := x.p.altSvc(x.table, true); alt != "" {
		b = http2.AppendField(b, "alt-svc", alt)
	}
	if len(limit) > 0 {
		b = http2.AppendField(b, "ratelimit", view(limit))
		b = http2.AppendField(b, "ratelimit-policy", view(policy))
	}
	k.out, f.split = b, len(b)
}

// send implements front.
func (f *front2) send(k *work, whole bool) bool {
	f.active = false
	k.call.close()
	if !whole {
		f.s.Reset(http2.InternalError)
		return false
	}
	return f.s.Answer(k.out[:f.split], k.out[f.split:])
}
