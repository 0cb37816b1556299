package http2

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	theirs "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// said is a request as one of two readers has it.
type said struct {
	fields []string // pseudo fields as method, authority, path; the others sorted
	body   []byte
	whole  bool // it has ended
}

// theirReading is what x/net's reader of frames makes of a client's bytes, up to where it gives up.
func theirReading(data []byte) map[uint32]*said {
	out := map[uint32]*said{}
	fr := theirs.NewFramer(io.Discard, bytes.NewReader(data))
	fr.SetMaxReadFrameSize(maxFrame)
	fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
	fr.MaxHeaderListSize = 16 << 20
	for {
		f, err := fr.ReadFrame()
		if _, of := err.(theirs.StreamError); of {
			continue
		}
		if err != nil {
			return out
		}
		switch f := f.(type) {
		case *theirs.MetaHeadersFrame:
			if s := out[f.StreamID]; s != nil { // a trailer
				s.whole = s.whole || f.StreamEnded()
				continue
			}
			s := &said{whole: f.StreamEnded()}
			s.fields = []string{f.PseudoValue("method"), f.PseudoValue("authority"), f.PseudoValue("path")}
			var rest []string
			for _, h := range f.RegularFields() {
				switch h.Name {
				case "cookie": // may be joined
				case "host":
					if s.fields[1] == "" {
						s.fields[1] = h.Value
					}
				default:
					rest = append(rest, h.Name+": "+h.Value)
				}
			}
			slices.Sort(rest)
			s.fields = append(s.fields, rest...)
			out[f.StreamID] = s
		case *theirs.DataFrame:
			if s := out[f.StreamID]; s != nil {
				s.body = append(s.body, f.Data()...)
				s.whole = s.whole || f.StreamEnded()
			}
		}
	}
}

// streams are what clients send after their first SETTINGS, in pieces of a size, and how many whole requests there are in it.
func streams(add func(data []byte, size uint16, whole int)) {
	frames := func(write func(fr *theirs.Framer, block func(fields ...string) []byte)) []byte {
		var out, b bytes.Buffer
		fr, e := theirs.NewFramer(&out, nil), hpack.NewEncoder(&b)
		fr.AllowIllegalWrites = true
		write(fr, func(fields ...string) []byte {
			b.Reset()
			for i := 0; i < len(fields); i += 2 {
				e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			return bytes.Clone(b.Bytes())
		})
		return out.Bytes()
	}
	post := []string{":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/b?c"}
	add(frames(func(fr *theirs.Framer, block func(...string) []byte) {
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 1, BlockFragment: block(usual...), EndStream: true, EndHeaders: true})
		fr.WriteWindowUpdate(0, 1000)
		fr.WritePing(false, [8]byte{1})
	}), uint16(7), 1)
	add(frames(func(fr *theirs.Framer, block func(...string) []byte) {
		b := block(append(post, "content-length", "5", "cookie", "a=b", "cookie", "c=d")...)
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 1, BlockFragment: b[:9], PadLength: 3, Priority: theirs.PriorityParam{Weight: 9}})
		fr.WriteContinuation(1, true, b[9:])
		fr.WriteDataPadded(1, false, []byte("hel"), make([]byte, 4))
		fr.WriteData(1, true, []byte("lo"))
	}), uint16(1), 1)
	add(frames(func(fr *theirs.Framer, block func(...string) []byte) {
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 3, BlockFragment: block(post...), EndHeaders: true})
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 5, BlockFragment: block(append(post, "x-a", "1")...), EndHeaders: true})
		fr.WriteData(3, false, []byte("x"))
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 3, BlockFragment: block("x-sum", "1"), EndStream: true, EndHeaders: true})
		fr.WriteRSTStream(5, theirs.ErrCodeCancel)
		fr.WritePriority(7, theirs.PriorityParam{StreamDep: 3})
		fr.WriteGoAway(0, theirs.ErrCodeNo, nil)
	}), uint16(50), 1)
	add(frames(func(fr *theirs.Framer, block func(...string) []byte) {
		fr.WriteHeaders(theirs.HeadersFrameParam{StreamID: 1, BlockFragment: block(post...), EndHeaders: true, PadLength: 5})
		fr.WriteDataPadded(1, false, []byte("hel"), make([]byte, 4))
		fr.WriteDataPadded(1, true, []byte("lo"), make([]byte, 0))
	}), uint16(4), 1)
	add([]byte("\x00\x00\x00\x01\x05\x00\x00\x00\x01"), uint16(3), 0)
	add([]byte("\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff"), uint16(30), 0)
}

// Whatever a client sends, in whatever pieces: a request is served only if x/net's reader finds the same one in it, with the same
// body, and a whole one only if it is whole there; what goes back is frames; and all of it ends.
func FuzzConn(f *testing.F) {
	streams(func(data []byte, size uint16, _ int) { f.Add(data, size) })
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		if len(data) <= 32<<10 {
			serves(t, data, size)
		}
	})
}

// What is by the letter is served whole: a reader that refused it all would agree with any other.
func TestConn_ServesWhatIsByTheLetter(t *testing.T) {
	streams(func(data []byte, size uint16, whole int) {
		if got := serves(t, data, size); got != whole {
			t.Errorf("%x: %d whole requests were served, want %d", data, got, whole)
		}
	})
}

// serves has a connection read what a client sends and compares what it serves with theirReading; it gives the number of whole
// requests.
func serves(t *testing.T, data []byte, size uint16) (whole int) {
	data = append([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"), data...) // SETTINGS come first
	expect := theirReading(data)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		served := map[string]*said{}
		mine, other := net.Pipe()
		var wg sync.WaitGroup
		v := New(Config{MaxHead: 64 << 10, Go: wg.Go, Panicked: func(p any) { t.Errorf("panic: %v", p) }})
		id := func(s *said) string { return strings.Join(s.fields, "\n") }
		conn := v.NewConn(other, Peer{}, func(s *Stream) {
			got := &said{fields: []string{s.Request.Method, s.Request.Authority, s.Request.Target}}
			var rest []string
			for _, f := range s.Request.Fields {
				if f.Name != "cookie" && f.Name != "host" {
					rest = append(rest, f.Name+": "+f.Value)
				}
			}
			slices.Sort(rest)
			got.fields = append(got.fields, rest...)
			for i := range got.fields { // they point into buffers that are used again
				got.fields[i] = strings.Clone(got.fields[i])
			}
			s.HTTP(func(w http.ResponseWriter, r *http.Request) {
				var err error
				got.body, err = io.ReadAll(r.Body)
				got.whole = err == nil
				mu.Lock()
				if old := served[id(got)]; old == nil || got.whole { // of two that are alike a whole one is compared
					served[id(got)] = got
				}
				mu.Unlock()
				w.Write(got.body)
			})
		})
		wg.Go(func() {
			conn.Run()
			other.Close()
			v.Close()
		})
		answer := make(chan error, 1)
		go func() {
			fr := theirs.NewFramer(io.Discard, mine)
			for {
				if _, err := fr.ReadFrame(); err != nil {
					answer <- err
					return
				}
			}
		}()
		for b := append([]byte(preface), data...); len(b) > 0; {
			n := min(len(b), 1+int(size)%9000)
			if _, err := mine.Write(b[:n]); err != nil {
				break
			}
			b = b[n:]
		}
		synctest.Wait()
		mine.Close()
		wg.Wait()
		if err := <-answer; err != io.EOF && err != io.ErrUnexpectedEOF && err != io.ErrClosedPipe && !strings.Contains(err.Error(), "closed") {
			t.Errorf("what goes back is no frame: %v", err)
		}
		for _, got := range served {
			fits := func(want *said) bool {
				return slices.Equal(want.fields, got.fields) && (got.whole && want.whole && bytes.Equal(want.body, got.body) || !got.whole && bytes.HasPrefix(want.body, got.body))
			}
			if got.whole {
				whole++
			}
			found := false
			for _, want := range expect {
				found = found || fits(want)
			}
			if !found {
				t.Errorf("served %q with %q (whole: %v), which nobody else finds in it", got.fields, got.body, got.whole)
			}
		}
	})
	return whole
}
