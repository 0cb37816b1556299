package proxy

import (
	"net/http"
	"strings"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/http3"
	"bailiwick/dataplane/internal/relay"
)

// front3 fronts a common request over HTTP/3.
type front3 struct {
	c      *conn3
	s      *http3.Stream
	split  int  // where in k.out the answer's body begins
	active bool // the request has a call that is not closed
}

// stream serves a request over HTTP/3.
func (c *conn3) stream(s *http3.Stream) {
	d := c.door
	if d.fast == nil {
		s.HTTP(d.Handler.ServeHTTP)
		return
	}
	k := d.works.Get().(*work)
	f := &k.three
	*f = front3{c: c, s: s}
	defer f.done(k)
	if body, whole := s.Body(smallBody); whole {
		from := c.from()
		k.from, k.req, k.body, k.remote, k.secure, k.via = f, &s.Request, body, from.remote, true, "3.0 bailiwick"
		if k.common(d.fast, smallBody, c.sni) {
			k.ask.http3 = true
			k.call.begin(d.fast, from.client)
			k.call.proto = 3
			f.active = true
			if _, ok := k.admit(d.fast); ok {
				k.serve()
			}
			return
		}
	} else if s.Gone() {
		return
	}
	s.HTTP(d.Handler.ServeHTTP)
}

// done is the end, also where a panic passes: no request with a valid key is without a row.
func (f *front3) done(k *work) {
	door := f.c.door
	if f.active {
		k.call.close()
	}
	*f = front3{}
	k.done()
	door.works.Put(k)
}

// exchange implements front.
func (f *front3) exchange(k *work, do func(e *exchange)) bool {
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
func (f *front3) head(k *work, a *http1.Answer) {
	x := &k.call
	b := http3.AppendStatus(k.out[:0], a.Status)
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
		b = http3.AppendField(b, at.Name, at.Value)
	}
	if !length && a.Length == 0 && a.Status != 204 && a.Status != 304 && k.req.Method != http.MethodHead {
		b = http3.AppendField(b, "content-length", "0")
	}
	if !isDated {
		b = appendDate(http3.AppendLength(http3.AppendName(b, "date"), len(http.TimeFormat)), x.began)
	}
	b = appendID(http3.AppendLength(http3.AppendName(b, relay.HeaderRequestID), 36), x.id)
	b = http3.AppendField(b, "bailiwick-edge", x.p.cfg.Region)
	b = http3.AppendField(b, relay.HeaderServed, x.served)
	if alt := x.p.altSvc(x.table, false); alt != "" {
		b = http3.AppendField(b, "alt-svc", alt)
	}
	if len(limit) > 0 {
		b = http3.AppendField(b, "ratelimit", view(limit))
		b = http3.AppendField(b, "ratelimit-policy", view(policy))
	}
	k.out, f.split = b, len(b)
}

// send implements front.
func (f *front3) send(k *work, whole bool) bool {
	f.active = false
	k.call.close()
	if !whole {
		f.s.Reset(http3.InternalError)
		return false
	}
	return f.s.Answer(k.out[:f.split], k.out[f.split:])
}
