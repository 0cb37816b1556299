package adminapi

import (
	"io"
	"net/http"
	"slices"
	"time"
)

// exportStall is how long a client of an export may take no byte.
const exportStall = time.Minute

// patient lets some procedures' answers outlast the timeouts of the port's server, as long as its client goes on
// reading: each write has a deadline of its own, the pauses between them have none.
func patient(stall time.Duration, next http.Handler, procedures ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slices.Contains(procedures, r.URL.Path) {
			p := &patientWriter{w, http.NewResponseController(w), stall}
			p.pause()
			r.Body = requestBody{r.Body, p.ends}
			w = p
		}
		next.ServeHTTP(w, r)
	})
}

// requestBody ends the deadline for reading when there is nothing left to read: a server takes its passing for the
// client's departure.
type requestBody struct {
	io.ReadCloser
	ends *http.ResponseController
}

func (b requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.ends.SetReadDeadline(time.Time{})
	}
	return n, err
}

type patientWriter struct {
	http.ResponseWriter
	ends  *http.ResponseController
	stall time.Duration
}

// A writer that knows no deadlines, as some of tests do not, has none to outlast.
func (p *patientWriter) pause() { _ = p.ends.SetWriteDeadline(time.Time{}) }
func (p *patientWriter) hurry() { _ = p.ends.SetWriteDeadline(time.Now().Add(p.stall)) }

func (p *patientWriter) Write(b []byte) (int, error) {
	p.hurry()
	defer p.pause()
	return p.ResponseWriter.Write(b)
}

// Flush is what Connect asks of the writer of a stream.
func (p *patientWriter) Flush() {
	p.hurry()
	defer p.pause()
	_ = p.ends.Flush() // the next write tells what is wrong
}
