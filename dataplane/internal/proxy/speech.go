package proxy

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/rpc"
	"bailiwick/shared/usage"
)

// speech is what a call has more that speaks gRPC, gRPC-Web or Connect.
type speech struct {
	kind    rpc.Kind
	timeout time.Duration // that the client gives it; 0: none
	in, out rpc.Counter
	web     bool // it came as gRPC-Web and goes on as gRPC
	over    bool // its time is, and the answer says so
}

// spoken is what the request speaks. Refusals need to know it before anything is prepared.
func (x *exchange) spoken() rpc.Kind {
	if x.relayed {
		return rpc.None // another edge answers the client
	}
	return rpc.KindOf(x.r.Method, x.r.Header, x.r.URL.RawQuery)
}

// listen reads what the request says in its own words, and tells the next hop.
func (x *exchange) listen() {
	kind := rpc.KindOf(x.r.Method, x.r.Header, x.r.URL.RawQuery)
	if kind == rpc.None {
		return
	}
	s := &speech{kind: kind}
	x.speech = s
	if d, ok := kind.Timeout(x.r.Header); ok {
		s.timeout = max(d, 1)
	}
	if left := x.left(forever); left < forever {
		kind.SetTimeout(x.header, left)
	}
	if s.web = (kind == rpc.Web || kind == rpc.WebText) && !x.relayed && x.v.Route != nil && x.v.Route.GRPCWeb; s.web {
		x.header["Content-Type"] = []string{rpc.Native(x.header.Get("Content-Type"))}
		delete(x.header, "Accept")
		delete(x.header, "X-Grpc-Web")
	}
	if kind == rpc.GRPC || s.web {
		x.header["Te"] = []string{"trailers"}
	}
}

// hurried says that the time is over which the client itself gave the request. Nothing of that is an upstream's fault: one client
// in a hurry must not take it from all others.
func (c *call) hurried() bool {
	return c.speech != nil && c.speech.timeout > 0 && time.Since(c.began) >= c.speech.timeout
}

const forever = 1 << 62

// deadline is how long the call may take in all: the client's word, and the route's; 0: as long as it will.
func (c *call) deadline() time.Duration {
	var d time.Duration
	if c.v.Route != nil {
		d = c.v.Route.Deadline
	}
	if s := c.speech; s != nil && s.timeout > 0 && (d == 0 || s.timeout < d) {
		d = s.timeout
	}
	return d
}

// within holds a body of unknown length to the route's limit: the whole of it, or where it is a stream of messages each of them.
// That it is one is the client's word, which counts where streams may be expected: else any client could have its upload not bounded.
func (x *exchange) within(r io.ReadCloser, limit int64, known bool) io.ReadCloser {
	s := x.speech
	if s != nil && s.decodes() {
		r = rpc.FromText(r)
	}
	if s != nil && s.kind == rpc.WebText && !s.web && x.perMessage() { // it passes as it is
		s.in.Text = true
		r = rpc.Reader{ReadCloser: r, Counter: &s.in}
	}
	switch {
	case s != nil && (s.kind.Framed() || s.decodes()):
		s.in.Max = limit
		if !known && !x.streams() {
			r = http.MaxBytesReader(x.w, r, limit)
		}
		return messages{rpc.Reader{ReadCloser: r, Counter: &s.in}}
	case known:
		return r
	}
	return http.MaxBytesReader(x.w, r, limit)
}

// streams says whether the API or the route is one that streams of messages are expected of: an upstream here speaks HTTP/2, or is asked
// by gRPC whether it is well, or the route translates gRPC-Web, or sells messages. Where there is no upstream in this region, the edge of
// the one that has it decides.
func (x *exchange) streams() bool {
	r, api := x.v.Route, x.v.API
	return r != nil && r.GRPCWeb || x.perMessage() || api == nil || len(api.Protocols) > 0 || api.HealthGRPC != nil || len(api.Targets) == 0
}

// decodes says whether the body of the request is base64 on its way in.
func (s *speech) decodes() bool { return s.web && s.kind == rpc.WebText }

// timed has a stream of messages whose time is over say so in its own words, as an upstream would that looks at the clock: its trailer
// is on the way when its head has long left. Within a message there is no place for that: the stream is reset then.
func (x *exchange) timed(resp *http.Response) {
	if kind := rpc.ByType(resp.Header.Get("Content-Type")); x.speech != nil && !x.relayed && resp.ContentLength < 0 && kind.Framed() && x.deadline() > 0 {
		resp.Body = &timedBody{ReadCloser: resp.Body, x: x, resp: resp, kind: kind}
	}
}

// lastWord is how long a client has to take the end of a stream whose time is over.
const lastWord = 5 * time.Second

// room is how long a client has to take a piece of the answer.
func (x *exchange) room(idle time.Duration) time.Duration {
	if x.speech != nil && x.speech.over {
		return lastWord
	}
	return x.left(idle)
}

// clocks is by how much an upstream that was told the time may seem to end a stream before that is over.
const clocks = 20 * time.Millisecond

type timedBody struct {
	io.ReadCloser
	x    *exchange
	resp *http.Response
	kind rpc.Kind
	seen rpc.Counter
	last []byte // of what is said in the body
	said bool
}

func (b *timedBody) Read(p []byte) (int, error) {
	if b.said {
		n := copy(p, b.last)
		if b.last = b.last[n:]; n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	n, err := b.ReadCloser.Read(p)
	b.seen.Take(p[:n])
	if x := b.x; err == nil || err == io.EOF || !b.seen.Whole() || time.Since(x.began) < x.deadline()-clocks || x.taken.Load() || x.gone() {
		return n, err
	}
	const text = gate.ReasonUpstreamLate + ": the time for this answer is over."
	b.said, b.x.speech.over = true, true
	trailer := http.Header{"Grpc-Status": {strconv.Itoa(int(rpc.DeadlineExceeded))}, "Grpc-Message": {rpc.Message(text)}}
	switch b.kind {
	case rpc.GRPC:
		b.resp.Trailer = trailer
	case rpc.Web:
		b.last = rpc.TrailerFrame(trailer)
	default:
		b.last = rpc.ConnectError(rpc.DeadlineExceeded, text, true)
	}
	return n, nil
}

// toWeb makes an answer of gRPC one of gRPC-Web, where the request was translated. One without a body has its status in its head.
func (x *exchange) toWeb(resp *http.Response) {
	s := x.speech
	if s == nil || !s.web || rpc.ByType(resp.Header.Get("Content-Type")) != rpc.GRPC {
		return
	}
	resp.Header["Content-Type"] = []string{s.kind.Web(resp.Header.Get("Content-Type"))}
	if resp.ContentLength == 0 {
		return
	}
	delete(resp.Header, "Content-Length")
	resp.ContentLength = -1
	if s.kind == rpc.WebText { // messages cannot be seen behind that
		resp.Body = rpc.Reader{ReadCloser: resp.Body, Counter: &s.out}
	}
	resp.Body = s.kind.ToWeb(resp.Body, func() http.Header {
		out := http.Header{}
		for name, values := range resp.Trailer {
			if !strings.HasPrefix(name, relay.Prefix) && !hop[name] {
				out[name] = values
			}
		}
		return out
	})
}

// messages is a body whose messages are counted.
type messages struct{ rpc.Reader }

func (m messages) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if errors.Is(err, rpc.ErrMessage) {
		err = &http.MaxBytesError{Limit: m.Max}
	}
	return n, err
}

// framed says whether the answer is a stream of messages.
func (x *exchange) framed(resp *http.Response) bool {
	if x.speech == nil || !rpc.ByType(resp.Header.Get("Content-Type")).Framed() {
		return false
	}
	if x.v.Route != nil {
		x.speech.out.Max = x.v.Route.MaxResponseBytes
	}
	return true
}

// texted says whether the answer is a stream of messages in base64 that passes as it is, and whose messages cost.
func (x *exchange) texted(resp *http.Response) bool {
	if x.speech == nil || x.speech.web || rpc.ByType(resp.Header.Get("Content-Type")) != rpc.WebText || !x.perMessage() {
		return false
	}
	x.speech.out.Text = true
	return true
}

// perMessage says whether messages cost here.
func (c *call) perMessage() bool {
	return c.v.Counted && c.v.Route != nil && c.v.Route.Units != nil && c.v.Route.Units.PerMessages > 0
}

// messages is how many passed, both ways.
func (c *call) messages() int64 {
	if c.speech == nil {
		return 0
	}
	return c.speech.in.N() + c.speech.out.N()
}

// judged takes a gRPC status into the outcome of the call: in a row, and in what is told of an API's errors, it counts as the
// status of HTTP that says the same.
func (x *exchange) judged(said http.Header, outcome usage.Outcome) usage.Outcome {
	if x.speech == nil {
		return outcome
	}
	if code, ok := rpc.Said(said); ok && code != rpc.OK {
		x.status = code.HTTP()
		return usage.OutcomeOf(x.status)
	}
	return outcome
}

// rushed says of an answer that its status is what the client's own time came to: Connect says 504 then, and who looks at the
// clock first may be the upstream.
func (c *call) rushed(status int) bool {
	return c.speech != nil && c.speech.timeout > 0 && status == http.StatusGatewayTimeout
}

// told is what an answer's head tells of a target.
func (x *exchange) told(resp *http.Response) failover.Event {
	switch resp.StatusCode {
	case 502, 503, 504:
		if x.rushed(resp.StatusCode) {
			return failover.Tick
		}
		return failover.Unavailable
	}
	if resp.StatusCode >= 500 {
		return failover.Erred
	}
	if x.speech != nil {
		switch code, _ := rpc.Said(resp.Header); {
		case code == rpc.Unavailable:
			return failover.Unavailable
		case code.Faulty():
			return failover.Erred
		}
	}
	return failover.Answered
}

// regret tells a target whose answer began well that it ended in an error of its own.
func (x *exchange) regret(res *result) {
	if t := res.place.Target; t != nil && x.speech != nil {
		if code, ok := rpc.Said(res.resp.Trailer); ok && code.Faulty() {
			t.Regret()
		}
	}
}

// tell answers for the edge itself in the client's words: gRPC and gRPC-Web have their status in the head of an answer without
// body, Connect an error in JSON. The status of HTTP stays in the row.
func (x *exchange) tell(kind rpc.Kind, problem gate.Problem) {
	code := rpc.FromHTTP(problem.Status)
	text := problem.Reason + ": " + problem.Title
	if problem.Detail != "" {
		text += ". " + problem.Detail
	}
	h := x.w.Header()
	status := http.StatusOK
	var data []byte
	switch kind {
	case rpc.ConnectUnary:
		status = problem.Status
		h["Content-Type"] = []string{"application/json"}
		data = rpc.ConnectError(code, text, false)
	case rpc.ConnectStream:
		h["Content-Type"] = x.r.Header["Content-Type"][:1:1]
		data = rpc.ConnectError(code, text, true)
	default:
		h["Content-Type"] = x.r.Header["Content-Type"][:1:1]
		h["Grpc-Status"] = []string{strconv.Itoa(int(code))}
		h["Grpc-Message"] = []string{rpc.Message(text)}
	}
	if len(data) > 0 {
		h["Content-Length"] = []string{strconv.Itoa(len(data))}
	}
	x.written = true
	x.w.WriteHeader(status)
	if len(data) > 0 {
		x.w.Write(data)
	}
}

// speaks says of a header that its request may speak gRPC or what is like it: none of the common ones does.
func speaks(f *http1.Field) bool {
	switch len(f.Name) {
	case len("Content-Type"): // application/grpc and application/connect, which application/json is told from at a glance
		return len(f.Value) > 15 && (f.Value[12]|0x20 == 'g' || f.Value[12]|0x20 == 'c') && strings.EqualFold(f.Name, "Content-Type") && rpc.ByType(f.Value) != rpc.None
	case len("Connect-Protocol-Version"):
		return strings.EqualFold(f.Name, "Connect-Protocol-Version")
	}
	return false
}
