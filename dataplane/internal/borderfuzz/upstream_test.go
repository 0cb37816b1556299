package borderfuzz

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How an upstream is.
const (
	well = iota
	slow
	busy   // 503
	paused // takes everything and says nothing
	down   // refuses connections
)

// upstream is one API's service in one region.
type upstream struct {
	service *service
	region  string
	addr    string
	judge   *judge
	state   atomic.Int32

	mu     sync.Mutex // covers server and awake
	server *http.Server
	awake  chan struct{} // closed when it is not paused any more
}

func (u *upstream) String() string { return u.service.zone + "/" + u.service.name + "@" + u.region }

func (u *upstream) listen(addr string) error {
	var l net.Listener
	var err error
	for range 200 { // the old socket may linger
		if l, err = net.Listen("tcp", addr); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	u.addr = l.Addr().String()
	server := &http.Server{Handler: u, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	u.mu.Lock()
	u.server = server
	u.mu.Unlock()
	go server.Serve(l)
	return nil
}

// become changes the state. Only one goroutine calls it.
func (u *upstream) become(state int32) error {
	was := u.state.Swap(state)
	u.mu.Lock()
	if was == paused && state != paused {
		close(u.awake)
		u.awake = nil
	}
	if state == paused && was != paused {
		u.awake = make(chan struct{})
	}
	server := u.server
	u.mu.Unlock()
	switch {
	case was != down && state == down:
		return server.Close()
	case was == down && state != down:
		return u.listen(u.addr)
	}
	return nil
}

func (u *upstream) serves() bool { s := u.state.Load(); return s == well || s == slow }

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	probe := strings.HasPrefix(r.UserAgent(), "bailiwick-probe")
	if !probe {
		if s := u.judge.saw(u, r); s.held != nil && r.Header.Get(headerHold) != "" && u.state.Load() == well {
			u.hold(w, r, s.held)
			return
		}
	}
	switch u.state.Load() {
	case paused:
		u.mu.Lock()
		awake := u.awake
		u.mu.Unlock()
		if awake != nil {
			select {
			case <-awake:
			case <-r.Context().Done():
				return
			}
		}
	case busy:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case slow:
		if !probe {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if r.ContentLength != 0 {
		io.Copy(io.Discard, r.Body)
	}
	h := w.Header()
	h[headerUpstream] = []string{u.region}
	h["Bailiwick-Served"] = forgedServed
	h["Content-Length"] = twoBytes
	w.Write(okBody)
}

var (
	forgedServed = []string{"forged-by-upstream"}
	twoBytes     = []string{"2"}
	okBody       = []byte("ok")
)
