package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/shared/usage"
)

// roomless asks for a path over HTTP/2, and gives so much room for the answer.
func roomless(t *testing.T, w *world, path string, window uint32) *http2.Framer {
	_, at := w.secure()
	_, f := frames(t, at)
	f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headerBlock(":method", "GET", ":scheme", "https", ":authority", "orders.test", ":path", path, "x-api-key", w.key), EndHeaders: true, EndStream: true})
	return f
}

// heard reads what comes of stream 1: its status, then bytes of the body until there are so many or its end, which is said.
func heard(t *testing.T, f *http2.Framer, n int) (status string, got int, end string) {
	t.Helper()
	dec := hpack.NewDecoder(4096, nil)
	for n < 0 || got < n || status == "" {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("after %q and %d bytes: %v", status, got, err)
		}
		switch fr := fr.(type) {
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(fr.HeaderBlockFragment())
			if err != nil {
				t.Fatal(err)
			}
			if status += fields[0].Value; n == 0 {
				return status, 0, ""
			}
			if fr.StreamEnded() {
				return status, got, "end"
			}
		case *http2.DataFrame:
			if got += len(fr.Data()); fr.StreamEnded() {
				return status, got, "end"
			}
		case *http2.RSTStreamFrame:
			return status, got, fr.ErrCode.String()
		}
	}
	return status, got, ""
}

// A head does not wait for room, what follows comes as there is some, and an end needs none: an answer that is as long as what the
// client takes, whose end comes later, is whole.
func TestFlow_NeitherHeadNorEndNeedsRoom(t *testing.T) {
	w := newWorld(t, patient)
	ends := make(chan struct{})
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Write(make([]byte, 50_000))
		http.NewResponseController(rw).Flush()
		<-ends
		rw.Header().Set(http.TrailerPrefix+"X-Sum", "all")
	})
	f := roomless(t, w, "/v1/x", 0)
	if status, _, _ := heard(t, f, 0); status != "200" {
		t.Fatalf("got %q without room", status)
	}
	f.WriteWindowUpdate(1, 20_000)
	if _, got, end := heard2(t, f, 20_000); got != 20_000 || end != "" {
		t.Fatalf("got %d bytes of 20000, %q", got, end)
	}
	f.WriteWindowUpdate(1, 30_000)
	if _, got, end := heard2(t, f, 30_000); got != 30_000 || end != "" {
		t.Fatalf("got %d bytes of the other 30000, %q", got, end)
	}
	close(ends)
	if status, got, end := heard(t, f, -1); got != 0 || end != "end" {
		t.Errorf("got %q, %d bytes, %q in the end", status, got, end)
	}
	eventually(t, time.Minute, "the row", func() bool {
		row := w.west.meter.last()
		return row.Outcome == usage.OutcomeSuccess && row.BytesOut == 50_000
	})
}

// heard2 is heard of whom the head was heard.
func heard2(t *testing.T, f *http2.Framer, n int) (string, int, string) {
	t.Helper()
	got := 0
	for got < n {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		switch fr := fr.(type) {
		case *http2.DataFrame:
			if got += len(fr.Data()); fr.StreamEnded() {
				return "", got, "end"
			}
		case *http2.RSTStreamFrame:
			return "", got, fr.ErrCode.String()
		}
	}
	return "", got, ""
}

// A client that makes room for a byte now and then is given up, as one that makes none; one that waits for events is not, however
// little room it has and however long they take.
func TestFlow_AByteNowAndThenIsNoRoom(t *testing.T) {
	w := newWorld(t, patient)
	next := make(chan struct{})
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "events") {
			for range 3 {
				io.WriteString(rw, "data: x\n\n")
				http.NewResponseController(rw).Flush()
				<-next
			}
			return
		}
		rw.Header().Set("Content-Length", "1000000")
		rw.Write(make([]byte, 1_000_000))
	})
	f := roomless(t, w, "/quick/long", 0) // 300 ms for 32 KiB
	heard(t, f, 0)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
				f.WriteWindowUpdate(1, 1)
			}
		}
	}()
	began := time.Now()
	if _, got, end := heard2(t, f, 1_000_000); end == "" || end == "end" || got > 1000 || time.Since(began) > 15*time.Second {
		t.Errorf("got %d bytes, %q after %v", got, end, time.Since(began))
	}
	eventually(t, time.Minute, "the row", func() bool { return w.west.meter.last().Outcome == usage.OutcomeAborted })

	events := roomless(t, w, "/v1/events", 9)
	heard(t, events, 9)
	for range 2 {
		time.Sleep(50 * time.Millisecond)
		events.WriteWindowUpdate(1, 9)
		next <- struct{}{}
		if _, got, end := heard2(t, events, 9); got != 9 || end != "" {
			t.Fatalf("got %d bytes, %q", got, end)
		}
	}
	next <- struct{}{}
	if _, _, end := heard(t, events, -1); end != "end" {
		t.Errorf("the events end with %q", end)
	}
}
