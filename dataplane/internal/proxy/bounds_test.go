package proxy_test

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/shared/usage"
)

// A place among the requests under way is given back however a request ends; the window of the plan goes on.
func TestPath_APlaceIsGivenBack(t *testing.T) {
	w := newWorld(t, nil)
	key, o := mint(t, "narrow") // one at once, four an hour
	w.objects = append(w.objects, o)
	w.west.tables.Swap(w.view(w.west, true))
	w.west.up.pause()
	got := make(chan answer, 1)
	go func() { got <- w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", key) }()
	eventually(t, 5*time.Second, "a request at the upstream", func() bool { _, uri := w.west.up.last(); return uri != "" })
	if a := w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", key); a.status != 429 || !strings.Contains(a.body, gate.ReasonCrowded) {
		t.Errorf("beside the first: got %d %s, want it refused", a.status, a.body)
	}
	w.west.up.resume()
	if a := <-got; a.status != 200 {
		t.Errorf("the first: got %d %v", a.status, a.err)
	}
	w.west.up.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	w.send("POST", "/v1/x", "broken off", "X-Api-Key", "", "X-Api-Key", key)
	w.west.up.does(nil)
	for i := range 3 {
		a := w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", key)
		if (a.status == 200) != (i < 2) || a.status == 429 && !strings.Contains(a.body, gate.ReasonRateExceeded) {
			t.Errorf("request %d after it: got %d %s, want two more within the hour's four", i, a.status, a.body)
		}
	}
}

func TestPath_AnAnswerHasItsBounds(t *testing.T) {
	w := newWorld(t, nil)
	body := func(n int, declared bool) func(http.ResponseWriter, *http.Request) {
		return func(rw http.ResponseWriter, r *http.Request) {
			if declared {
				rw.Header().Set("Content-Length", strconv.Itoa(n))
			}
			rw.WriteHeader(200)
			if !declared {
				rw.(http.Flusher).Flush()
			}
			io.WriteString(rw, strings.Repeat("x", n))
		}
	}
	for _, c := range []struct {
		name     string
		n        int
		declared bool
		status   int // 0: broken off
		outcome  usage.Outcome
		units    int64
	}{
		{"declared, within", 100, true, 200, usage.OutcomeSuccess, 1},
		{"declared, over", 101, true, 502, usage.OutcomeUnserved, 0},
		{"chunked, within", 100, false, 200, usage.OutcomeSuccess, 1},
		{"chunked, over", 101, false, 0, usage.OutcomeAborted, 1},
	} {
		w.west.up.does(body(c.n, c.declared))
		n := w.west.meter.len()
		a := w.send("GET", "/short/x", "")
		eventually(t, 5*time.Second, "a row", func() bool { return w.west.meter.len() > n })
		row := w.west.meter.last()
		if row.Outcome != c.outcome || row.Units != c.units {
			t.Errorf("%s: got a row with %v and %d units, want %v and %d", c.name, row.Outcome, row.Units, c.outcome, c.units)
		}
		if c.status == 0 && a.err == nil || c.status != 0 && (a.err != nil || a.status != c.status) {
			t.Errorf("%s: got %d %v, want %d", c.name, a.status, a.err, c.status)
		}
		if c.status == 502 && !strings.Contains(a.body, gate.ReasonAnswerLarge) {
			t.Errorf("%s: got %s", c.name, a.body)
		}
	}
}

// A deadline ends the whole request: one that waits for the answer with 504, an answer that goes on and on in its midst.
func TestPath_ADeadlineEndsARequest(t *testing.T) {
	w := newWorld(t, nil)
	answer := func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/brief/late" {
			<-r.Context().Done()
			return
		}
		for r.Context().Err() == nil {
			if _, err := io.WriteString(rw, "tick\n"); err != nil {
				return
			}
			rw.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	}
	w.west.up.does(answer)
	w.central.up.does(answer) // one that was late once is asked second
	if a := w.send("POST", "/brief/late", "x"); a.status != 504 || !strings.Contains(a.body, gate.ReasonUpstreamLate) {
		t.Errorf("got %d %s %v, want 504", a.status, a.body, a.err)
	}
	for tries := 0; ; tries++ {
		a := w.send("POST", "/brief/long", "x") // without a deadline it would never end
		if errors.Is(a.err, io.ErrUnexpectedEOF) && strings.HasPrefix(a.body, "tick\n") {
			break
		}
		if a.status != 504 || tries == 50 { // a machine that is busy may take all the time before the first byte
			t.Fatalf("got %d %v after %.20q, want it broken off in its midst", a.status, a.err, a.body)
		}
	}
	eventually(t, 5*time.Second, "a row", func() bool { return w.west.meter.last().Outcome == usage.OutcomeAborted })
}
