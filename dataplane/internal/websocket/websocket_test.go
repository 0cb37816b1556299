package websocket_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/websocket"
)

// leg is a connection in memory.
type leg struct{ net.Conn }

func (l leg) Break() { l.SetDeadline(time.Unix(1, 0)) }

// tally is a Meter.
type tally struct {
	messages, bytes [2]atomic.Int64
	spend           func(up bool, messages, bytes int64) error
	ticks           atomic.Int64
}

func (t *tally) Spend(up bool, messages, bytes int64) error {
	if t.spend != nil {
		if err := t.spend(up, messages, bytes); err != nil {
			return err
		}
	}
	i := 0
	if up {
		i = 1
	}
	t.messages[i].Add(messages)
	t.bytes[i].Add(bytes)
	return nil
}

func (t *tally) Tick() { t.ticks.Add(1) }

// frame is one as this test spells it: by the letter of the RFC, one byte after another.
type frame struct {
	op   byte
	fin  bool
	rsv  byte
	data []byte
}

func (f frame) bytes(masked bool, key uint32) []byte {
	b := []byte{f.op | f.rsv<<4}
	if f.fin {
		b[0] |= 0x80
	}
	flag := byte(0)
	if masked {
		flag = 0x80
	}
	switch n := len(f.data); {
	case n < 126:
		b = append(b, flag|byte(n))
	case n < 65536:
		b = append(b, flag|126, byte(n>>8), byte(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, flag|127), uint64(n))
	}
	if !masked {
		return append(b, f.data...)
	}
	k := [4]byte{byte(key), byte(key >> 8), byte(key >> 16), byte(key >> 24)}
	b = append(b, k[:]...)
	for i, c := range f.data {
		b = append(b, c^k[i%4])
	}
	return b
}

// read takes one frame, and insists on how it is spelt.
func read(r io.Reader, masked bool) (f frame, err error) {
	var h [2]byte
	if _, err = io.ReadFull(r, h[:]); err != nil {
		return f, err
	}
	f.op, f.fin, f.rsv = h[0]&15, h[0]&0x80 != 0, h[0]>>4&7
	if f.rsv != 0 || h[1]&0x80 != 0 != masked {
		return f, fmt.Errorf("header %x: reserved bits, or masked %v", h, !masked)
	}
	n := uint64(h[1] & 0x7f)
	var wide [8]byte
	var bad error
	switch n {
	case 126:
		_, bad = io.ReadFull(r, wide[6:])
		if n = binary.BigEndian.Uint64(wide[:]); bad == nil && n < 126 {
			return f, errors.New("length is not spelt in the fewest bytes")
		}
	case 127:
		_, bad = io.ReadFull(r, wide[:])
		if n = binary.BigEndian.Uint64(wide[:]); bad == nil && n < 65536 {
			return f, errors.New("length is not spelt in the fewest bytes")
		}
	}
	var k [4]byte
	if masked && bad == nil {
		_, bad = io.ReadFull(r, k[:])
	}
	if bad != nil {
		return f, io.ErrUnexpectedEOF
	}
	if n > 1<<24 {
		return f, errors.New("longer than anything said here")
	}
	f.data = make([]byte, n)
	if _, err = io.ReadFull(r, f.data); err != nil {
		return f, err
	}
	for i := range f.data {
		f.data[i] ^= k[i%4]
	}
	return f, nil
}

// said is what came of a stream of frames: messages, control frames apart.
type said struct {
	messages []string // operation and payload
	controls []string
	code     int // of the close frame; -1: none came
	err      error
}

// hear reads to the close frame or the end.
func hear(r io.Reader, masked bool) (s said) {
	s.code = -1
	op, data, begun := byte(0), []byte(nil), false
	for {
		f, err := read(r, masked)
		if err != nil {
			s.err = err
			return s
		}
		switch {
		case f.op == 8:
			if len(f.data) == 1 {
				s.err = errors.New("half a code")
				return s
			}
			if s.code = 0; len(f.data) > 0 {
				s.code = int(binary.BigEndian.Uint16(f.data))
			}
			return s
		case f.op > 8:
			s.controls = append(s.controls, fmt.Sprint(f.op, " ", string(f.data)))
			continue
		case f.op != 0 && begun, f.op == 0 && !begun:
			s.err = fmt.Errorf("frame %d while a message is under way: %v", f.op, begun)
			return s
		case f.op != 0:
			op, data, begun = f.op, nil, true
		}
		if data = append(data, f.data...); f.fin {
			s.messages, begun = append(s.messages, fmt.Sprint(op, " ", string(data))), false
		}
	}
}

// joined is a connection with this test at both ends.
type joined struct {
	client, upstream net.Conn
	meter            *tally
	end              chan websocket.End
	orders           chan websocket.Order
}

func join(t testing.TB, cfg websocket.Config) *joined {
	j := &joined{meter: &tally{}, end: make(chan websocket.End, 1), orders: make(chan websocket.Order, 1)}
	if m, ok := cfg.Meter.(*tally); ok {
		j.meter = m
	}
	var a, b net.Conn
	j.client, a = net.Pipe()
	j.upstream, b = net.Pipe()
	cfg.Client, cfg.Upstream, cfg.Meter, cfg.Orders = leg{a}, leg{b}, j.meter, j.orders
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		end := websocket.Join(ctx, cfg)
		a.Close()
		b.Close()
		j.end <- end
	}()
	t.Cleanup(func() { j.client.Close(); j.upstream.Close(); cancel() })
	return j
}

// Whatever is said in whatever pieces is heard at the other end, message by message, and counted; control frames come through
// between the pieces.
func TestJoin_CarriesWhatIsSaid(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		synctest.Test(t, func(t *testing.T) { carries(t, rng) })
	}
}

func carries(t *testing.T, rng *rand.Rand) {
	asked := make(chan struct{})
	j := join(t, websocket.Config{MaxMessage: 1 << 20})
	var wg sync.WaitGroup
	var wants, heards [2]said
	var sums [2]int64
	for i, at := range []net.Conn{j.client, j.upstream} {
		var stream bytes.Buffer
		want := &wants[i]
		put := func(f frame) { stream.Write(f.bytes(i == 0, rng.Uint32())) }
		for range rng.IntN(12) {
			data := make([]byte, []int{0, 1, 125, 126, 300, 5000, 65535, 65536, 90000}[rng.IntN(9)])
			op := byte(1 + rng.IntN(2))
			for k := range data {
				data[k] = byte(rng.Uint32())
			}
			if op == 1 {
				for k := range data {
					data[k] = 'a' + data[k]%26
				}
				if len(data) > 100 {
					copy(data[len(data)/2:], "äöü€😀")
				}
			}
			want.messages = append(want.messages, fmt.Sprint(op, " ", string(data)))
			sums[i] += int64(len(data))
			for first := true; ; first = false {
				n := rng.IntN(len(data) + 1)
				if rng.IntN(3) > 0 {
					n = len(data)
				}
				f := frame{op: op, data: data[:n], fin: n == len(data) && rng.IntN(5) > 0}
				if !first {
					f.op = 0
				}
				put(f)
				data = data[n:]
				if rng.IntN(3) == 0 {
					c := frame{op: 9 + byte(rng.IntN(2)), fin: true, data: []byte(fmt.Sprint("ping ", rng.Uint32()))}
					want.controls = append(want.controls, fmt.Sprint(c.op, " ", string(c.data)))
					put(c)
				}
				if f.fin {
					break
				}
			}
		}
		wg.Go(func() { // in pieces of any size, until both have said all
			b := stream.Bytes()
			for len(b) > 0 {
				n := min(len(b), 1+rand.IntN(1+rand.IntN(20000)))
				if _, err := at.Write(b[:n]); err != nil {
					t.Error(err)
					return
				}
				b = b[n:]
			}
			if i == 0 {
				at.Write(frame{op: 8, fin: true, data: []byte{3, 232, 'b', 'y', 'e'}}.bytes(true, 7))
				return
			}
			<-asked
			at.Write(frame{op: 8, fin: true, data: []byte{3, 232}}.bytes(false, 0))
		})
		other := []net.Conn{j.upstream, j.client}[i]
		wg.Go(func() {
			heards[i] = hear(other, i == 0)
			if i == 0 {
				close(asked)
			}
		})
	}
	end := <-j.end
	wg.Wait()
	if !end.Closed || end.Code != 1000 { // by whom depends on which of two goroutines is heard first
		t.Fatalf("it ended %+v, want by a close frame", end)
	}
	for i := range wants {
		got, want := heards[i], wants[i]
		if len(got.messages) != len(want.messages) || fmt.Sprint(got.controls) != fmt.Sprint(want.controls) {
			t.Fatalf("way %d: %d messages and %d control frames (%v), want %d and %d", i, len(got.messages), len(got.controls), got.err, len(want.messages), len(want.controls))
		}
		for k := range got.messages {
			if got.messages[k] != want.messages[k] {
				t.Fatalf("way %d: message %d differs", i, k)
			}
		}
		if n := j.meter.messages[1-i].Load(); n != int64(len(want.messages)) {
			t.Errorf("way %d: %d messages counted, want %d", i, n, len(want.messages))
		}
		if n := j.meter.bytes[1-i].Load(); n != sums[i] {
			t.Errorf("way %d: %d bytes counted, want %d", i, n, sums[i])
		}
	}
}

// What the protocol forbids ends the connection: whoever did it is told what it was, and nothing of it goes on.
func TestJoin_HoldsBothSidesToTheProtocol(t *testing.T) {
	text := func(s string) frame { return frame{op: 1, fin: true, data: []byte(s)} }
	many := func(n int, f frame) (out []frame) {
		for range n {
			out = append(out, f)
		}
		return out
	}
	raw := func(b ...byte) []byte { return b }
	for name, c := range map[string]struct {
		frames []frame
		raw    []byte // as a client would send it, instead
		code   int
	}{
		"a reserved bit":              {frames: []frame{{op: 1, fin: true, rsv: 4, data: []byte("x")}}, code: 1002},
		"an unknown operation":        {frames: []frame{{op: 3, fin: true}}, code: 1002},
		"an unknown control":          {frames: []frame{{op: 11, fin: true}}, code: 1002},
		"a long ping":                 {frames: []frame{{op: 9, fin: true, data: make([]byte, 126)}}, code: 1002},
		"a ping in pieces":            {frames: []frame{{op: 9, data: []byte("x")}}, code: 1002},
		"a message within one":        {frames: []frame{{op: 1, data: []byte("x")}, text("y")}, code: 1002},
		"a continuation of nothing":   {frames: []frame{{op: 0, fin: true, data: []byte("x")}}, code: 1002},
		"a continuation of an end":    {frames: []frame{text("x"), {op: 0, fin: true}}, code: 1002},
		"a message too long":          {frames: []frame{{op: 2, fin: true, data: make([]byte, 1001)}}, code: 1009},
		"one in pieces":               {frames: []frame{{op: 2, data: make([]byte, 600)}, {op: 0, data: make([]byte, 600)}}, code: 1009},
		"no UTF-8":                    {frames: []frame{text("a\xff")}, code: 1007},
		"half a character":            {frames: []frame{text("a\xe2\x82")}, code: 1007},
		"a surrogate over two frames": {frames: []frame{{op: 1, data: []byte("\xed")}, {op: 0, fin: true, data: []byte("\xa0\x80")}}, code: 1007},
		"half a close code":           {frames: []frame{{op: 8, fin: true, data: []byte{3}}}, code: 1002},
		"a code that is never sent":   {frames: []frame{{op: 8, fin: true, data: []byte{3, 238}}}, code: 1002}, // 1006
		"a code of nobody":            {frames: []frame{{op: 8, fin: true, data: []byte{7, 208}}}, code: 1002}, // 2000
		"a reason that is no text":    {frames: []frame{{op: 8, fin: true, data: []byte{3, 232, 0xff}}}, code: 1002},
		"a flood of pings":            {frames: many(200, frame{op: 9, fin: true}), code: 1008},
		"no mask":                     {raw: raw(0x81, 1, 'x'), code: 1002},
		"126 spelt long":              {raw: raw(0x82, 0x80|126, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5), code: 1002},
		"65535 spelt longer":          {raw: append(raw(0x82, 0x80|127, 0, 0, 0, 0, 0, 0, 255, 255), make([]byte, 4)...), code: 1002},
		"more than there can be":      {raw: append(raw(0x82, 0x80|127, 0x80, 0, 0, 0, 0, 0, 0, 0), make([]byte, 4)...), code: 1002},
		"nearly so":                   {raw: append(raw(0x82, 0x80|127, 0x7f, 255, 255, 255, 255, 255, 255, 255), make([]byte, 4)...), code: 1009},
	} {
		for _, from := range []string{websocket.Client, websocket.Upstream} {
			if c.raw != nil && from == websocket.Upstream {
				continue
			}
			t.Run(name+" of the "+from, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					j := join(t, websocket.Config{MaxMessage: 1000})
					at, other := j.client, j.upstream
					if from == websocket.Upstream {
						at, other = other, at
					}
					b := c.raw
					for _, f := range c.frames {
						b = append(b, f.bytes(from == websocket.Client, 0x12345678)...)
					}
					go at.Write(b)
					back, on := make(chan said, 1), make(chan said, 1)
					go func() { back <- hear(at, from == websocket.Upstream); at.Close() }()
					go func() { on <- hear(other, from == websocket.Client); other.Close() }()
					if got := <-back; got.code != c.code || len(got.messages) > 0 {
						t.Errorf("whoever did it heard code %d and %q (%v), want %d", got.code, got.messages, got.err, c.code)
					}
					want := 1001
					if from == websocket.Upstream {
						want = 1011
					}
					if c.code == 1008 && from == websocket.Upstream { // a flood is one by any name
						want = 1011
					}
					if got := <-on; got.code != want {
						t.Errorf("the other heard code %d (%v), want %d", got.code, got.err, want)
					} else if name != "a continuation of an end" && len(got.messages) > 0 {
						t.Errorf("the other heard %q", got.messages)
					}
					if end := <-j.end; end.By != from || end.Closed || end.Err == nil {
						t.Errorf("it ended %+v", end)
					}
				})
			})
		}
	}
}

// Who is silent is asked for a sign of life, and given up without one; an answer to that question goes no further.
func TestJoin_AsksWhoIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, websocket.Config{Ping: 10 * time.Second, Idle: time.Hour})
		answered := make(chan int, 1)
		go func() { // a client that lives
			n := 0
			for {
				f, err := read(j.client, false)
				if err != nil || f.op == 8 {
					answered <- n
					return
				}
				if f.op == 9 {
					n++
					j.client.Write(frame{op: 10, fin: true, data: f.data}.bytes(true, 1))
				}
			}
		}()
		heard := make(chan said, 1)
		go func() { heard <- hear(j.upstream, true) }() // an upstream that takes and says nothing
		began := time.Now()
		end := <-j.end
		if took := time.Since(began); took < 20*time.Second || took > 30*time.Second {
			t.Errorf("the dead one was given up after %v, want 20 s and up to two looks", took)
		}
		if end.By != websocket.Upstream || end.Err == nil || end.Code != websocket.CloseFailed {
			t.Errorf("it ended %+v", end)
		}
		if n := <-answered; n == 0 {
			t.Error("the client was never asked")
		}
		got := <-heard
		for _, c := range got.controls {
			if strings.HasPrefix(c, "10 ") {
				t.Errorf("the upstream heard the client's answer to the edge: %q", c)
			}
		}
	})
}

func TestJoin_EndsWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, websocket.Config{Ping: time.Minute, Idle: 10 * time.Second})
		client, upstream := make(chan said, 1), make(chan said, 1)
		go func() { client <- hear(j.client, false) }()
		go func() { upstream <- hear(j.upstream, true) }()
		for range 3 { // it lasts while something is said
			time.Sleep(8 * time.Second)
			j.client.Write(frame{op: 2, fin: true, data: []byte("x")}.bytes(true, 9))
		}
		select {
		case end := <-j.end:
			t.Fatalf("it ended although something was said: %+v", end)
		default:
		}
		end := <-j.end
		if end.By != websocket.Edge || end.Code != 1001 {
			t.Errorf("it ended %+v, want 1001 by the edge", end)
		}
		if c, u := <-client, <-upstream; c.code != 1001 || u.code != 1001 || len(u.messages) != 3 {
			t.Errorf("told %d and %d with %d messages, want 1001 both", c.code, u.code, len(u.messages))
		}
	})
}

// Who takes nothing is given up; while he takes nothing, nobody is blamed for being silent.
func TestJoin_GivesUpWhoTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, websocket.Config{Ping: 5 * time.Second, Idle: time.Hour})
		go func() { // the client says more than anybody takes, and answers pings
			for {
				if _, err := j.client.Write(frame{op: 2, fin: true, data: make([]byte, 3000)}.bytes(true, 3)); err != nil {
					return
				}
			}
		}()
		go hear(j.client, false)
		began := time.Now()
		end := <-j.end
		if end.By != websocket.Upstream || end.Code != websocket.CloseFailed {
			t.Errorf("it ended %+v, want by the upstream that takes nothing", end)
		}
		if took := time.Since(began); took < 30*time.Second || took > 45*time.Second {
			t.Errorf("it was given up after %v, want 30 s", took)
		}
	})
}

// An order is told to both, at once, whether they answer or not.
func TestJoin_TakesOrders(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			j := join(t, websocket.Config{})
			client, upstream := make(chan said, 1), make(chan said, 1)
			go func() {
				client <- hear(j.client, false)
				if answers {
					j.client.Write(frame{op: 8, fin: true}.bytes(true, 3))
				}
			}()
			go func() {
				upstream <- hear(j.upstream, true)
				if answers {
					j.upstream.Write(frame{op: 8, fin: true}.bytes(false, 0))
				}
			}()
			began := time.Now()
			j.orders <- websocket.Order{Code: websocket.ClosePolicy, Reason: "the key was revoked"}
			if c, u := <-client, <-upstream; c.code != 1008 || u.code != 1008 || time.Since(began) > 0 {
				t.Errorf("told %d and %d after %v, want 1008 at once", c.code, u.code, time.Since(began))
			}
			if end := <-j.end; end.By != websocket.Edge || end.Reason != "the key was revoked" {
				t.Errorf("it ended %+v", end)
			}
			want := 2 * time.Second
			if answers {
				want = 0
			}
			if took := time.Since(began); took != want {
				t.Errorf("it took %v, want %v", took, want)
			}
		})
	}
}

// A message that may not be counted does not pass; what came before it does.
func TestJoin_LetsNothingPassUncounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		m := &tally{spend: func(up bool, messages, bytes int64) error {
			if messages > 0 && n.Add(1) > 2 {
				return &websocket.Order{Code: websocket.ClosePolicy, Reason: "the quota is used up"}
			}
			return nil
		}}
		j := join(t, websocket.Config{Meter: m})
		go func() {
			var b []byte
			for range 5 {
				b = append(b, frame{op: 1, fin: true, data: []byte("hello")}.bytes(true, 5)...)
			}
			j.client.Write(b)
		}()
		client := make(chan said, 1)
		go func() { client <- hear(j.client, false); j.client.Close() }()
		if got := hear(j.upstream, true); len(got.messages) != 2 || got.code != 1008 {
			t.Errorf("%d messages passed and code %d (%v), want 2 and 1008", len(got.messages), got.code, got.err)
		}
		j.upstream.Close()
		if got := <-client; got.code != 1008 {
			t.Errorf("the client heard %d, want 1008", got.code)
		}
		if end := <-j.end; end.By != websocket.Edge {
			t.Errorf("it ended %+v", end)
		}
	})
}

// A panic is one connection's end.
func TestJoin_SurvivesItsMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := join(t, websocket.Config{Meter: &tally{spend: func(bool, int64, int64) error { panic("a customer's secret") }}})
		go j.client.Write(frame{op: 1, fin: true, data: []byte("x")}.bytes(true, 5))
		go hear(j.upstream, true)
		if got := hear(j.client, false); got.code != 1011 {
			t.Errorf("the client heard %d (%v), want 1011", got.code, got.err)
		}
		j.client.Close()
		if end := <-j.end; len(end.Panic) == 0 || strings.Contains(string(end.Panic), "secret") {
			t.Errorf("it ended %+v, want where in the code and nothing of the value", end)
		}
	})
}

// echo is a pair of ends over which a message makes a round without memory.
func TestJoin_MessagesAllocateNothing(t *testing.T) {
	j := join(t, websocket.Config{MaxMessage: 1 << 20})
	go func() {
		buf, answer := make([]byte, 64<<10), []byte{0x82, 1, 'x'}
		for {
			if _, err := j.upstream.Read(buf); err != nil {
				return
			}
			if _, err := j.upstream.Write(answer); err != nil {
				return
			}
		}
	}()
	hello := frame{op: 1, fin: true, data: []byte("hello, wörld")}.bytes(true, 0x01020304)
	buf := make([]byte, 64)
	round := func() {
		if _, err := j.client.Write(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(j.client, buf[:3]); err != nil {
			t.Fatal(err)
		}
	}
	round()
	if n := testing.AllocsPerRun(500, round); n != 0 {
		t.Errorf("a message there and one back take %v allocations, want 0", n)
	}
}

// What a client sends, whatever it is, reaches an upstream as frames that are spelt by the letter, or not at all; and what is
// by the letter reaches it whole.
func FuzzJoin(f *testing.F) {
	f.Add(frame{op: 1, fin: true, data: []byte("hello")}.bytes(true, 5), 3)
	f.Add(append(frame{op: 2, data: make([]byte, 200)}.bytes(true, 5), frame{op: 0, fin: true, data: []byte("x")}.bytes(true, 6)...), 1)
	f.Add(frame{op: 9, fin: true, data: []byte("p")}.bytes(true, 0), 1)
	f.Add(frame{op: 8, fin: true, data: []byte{3, 232}}.bytes(true, 1), 9)
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4, 5}, 4)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		if len(in) > 64<<10 {
			return
		}
		j := join(t, websocket.Config{MaxMessage: 4096})
		go func() {
			for b := in; len(b) > 0; {
				n := min(len(b), 1+int(uint(cut)%1000))
				if _, err := j.client.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			j.client.Close()
		}()
		go io.Copy(io.Discard, j.client)
		got := hear(j.upstream, true)
		j.upstream.Close()
		end := <-j.end
		if got.code < 0 && got.err != io.EOF && got.err != io.ErrUnexpectedEOF && !errors.Is(got.err, io.ErrClosedPipe) {
			t.Fatalf("the upstream heard what is no protocol: %v (it ended %+v)", got.err, end)
		}
		want := hear(bytes.NewReader(in), true) // this test's own reading, which is lenient
		for i, m := range got.messages {
			if i >= len(want.messages) || want.messages[i] != m {
				t.Fatalf("message %d was never said", i)
			}
		}
		if want.err == io.EOF && want.code < 0 && len(got.messages) < len(want.messages) {
			if v, ok := errors.AsType[*websocket.Violation](end.Err); !ok {
				t.Fatalf("%d of %d messages came, and it ended %+v (%v)", len(got.messages), len(want.messages), end, v)
			}
		}
	})
}

// Likewise what an upstream sends: it reaches a client as frames by the letter, none of them masked, or not at all.
func FuzzJoinBack(f *testing.F) {
	f.Add(frame{op: 1, fin: true, data: []byte("hello")}.bytes(false, 0), 3)
	f.Add(append(frame{op: 2, data: make([]byte, 200)}.bytes(false, 0), frame{op: 0, fin: true, data: []byte("x")}.bytes(false, 0)...), 1)
	f.Add(frame{op: 9, fin: true, data: []byte("p")}.bytes(false, 0), 1)
	f.Add(frame{op: 8, fin: true, data: []byte{3, 232}}.bytes(false, 0), 9)
	f.Add(frame{op: 1, fin: true, data: []byte("masked")}.bytes(true, 7), 2)
	f.Add([]byte{0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0}, 4)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		if len(in) > 64<<10 {
			return
		}
		j := join(t, websocket.Config{MaxMessage: 4096})
		go func() {
			for b := in; len(b) > 0; {
				n := min(len(b), 1+int(uint(cut)%1000))
				if _, err := j.upstream.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			j.upstream.Close()
		}()
		go io.Copy(io.Discard, j.upstream)
		got := hear(j.client, false)
		j.client.Close()
		end := <-j.end
		if got.code < 0 && got.err != io.EOF && got.err != io.ErrUnexpectedEOF && !errors.Is(got.err, io.ErrClosedPipe) {
			t.Fatalf("the client heard what is no protocol: %v (it ended %+v)", got.err, end)
		}
		want := hear(bytes.NewReader(in), false)
		for i, m := range got.messages {
			if i >= len(want.messages) || want.messages[i] != m {
				t.Fatalf("message %d was never said", i)
			}
		}
		if want.err == io.EOF && want.code < 0 && len(got.messages) < len(want.messages) {
			if v, ok := errors.AsType[*websocket.Violation](end.Err); !ok {
				t.Fatalf("%d of %d messages came, and it ended %+v (%v)", len(got.messages), len(want.messages), end, v)
			}
		}
	})
}
