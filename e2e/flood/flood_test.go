package flood

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// Each flood sends what it is there for, to a server that is nobody's, and ends when it is told to.
func TestFloods_SendAndEnd(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	clear, secure := httptest.NewServer(answer), httptest.NewUnstartedServer(answer)
	defer clear.Close()
	secure.EnableHTTP2 = true
	quiet := log.New(io.Discard, "", 0)
	clear.Config.ErrorLog, secure.Config.ErrorLog = quiet, quiet
	secure.StartTLS()
	defer secure.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	three := &http3.Server{Handler: answer, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: secure.TLS.Certificates})}
	go three.Serve(udp)
	defer three.Close()
	e := &Edge{HTTP: clear.Listener.Addr().String(), HTTPS: secure.Listener.Addr().String(), H3: udp.LocalAddr().String(), Host: "example.com", Few: "few.test", Zone: "emea", Key: "key", Long: "/long"}
	for _, f := range All(e) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		tally, ended := &Tally{came: map[string]int64{}}, make(chan struct{})
		go func() {
			defer close(ended)
			f.run(ctx, e, tally)
		}()
		for tally.Sent() == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("%s does not end", f.Name)
		}
		if tally.Sent() == 0 {
			t.Errorf("%s sent nothing: %s", f.Name, tally.Answers())
		}
	}
	with := *e
	with.Lines = "lines.test"
	if n := len(All(&with)) - len(All(e)); n != 2 {
		t.Errorf("%d floods need lines", n)
	}
	with = *e
	with.Few = ""
	if n := len(All(e)) - len(All(&with)); n != 6 {
		t.Errorf("%d floods need an API of few routes", n)
	}
	with = *e
	with.Lines = "lines.test"
	for _, f := range All(&with) {
		if !strings.Contains(f.Name, ": ") || f.Workers < 1 {
			t.Errorf("flood %q with %d workers", f.Name, f.Workers)
		}
	}
}
