package telemetry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout bounds one readiness answer: a probe that hangs is worse than
// one that says no.
const readyTimeout = 5 * time.Second

// NewRegistry is a registry of its own (never the process-wide default, which
// any imported library may write to) with bailiwick_build_info, the Go runtime
// and the process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	labels := prometheus.Labels{"program": "unknown", "version": "unknown", "revision": "unknown", "go": runtime.Version()}
	if bi, ok := debug.ReadBuildInfo(); ok {
		if bi.Path != "" {
			labels["program"] = path.Base(bi.Path)
		}
		if bi.Main.Version != "" {
			labels["version"] = bi.Main.Version
		}
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				labels["revision"] = s.Value
			}
		}
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "bailiwick_build_info", Help: "Always 1; the labels say what is running.", ConstLabels: labels,
	})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Handler serves a registry. A collector that errs costs its own metrics, not
// the whole page.
func Handler(reg *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: reg})
}

// Check is one named condition of readiness. A nil Err is a pass.
type Check struct {
	Name   string
	Err    error
	Detail string // shown with a passing check: "41 objects at 1.7/ab12cd34ef56"

	// Degraded is what does not work although the process should go on serving: ?verbose names it, and the
	// check passes.
	Degraded error
}

// NewAdminMux serves /livez and /healthz (the process answers), /readyz (every
// check passes, 503 otherwise; ?verbose lists them by name, then the lines of
// extra) and /metrics. ready is called per request, concurrently, with at most
// 5 s; nil is always ready.
//
// Serve it on a loopback or otherwise private address: it authenticates nobody.
func NewAdminMux(reg *prometheus.Registry, ready func(context.Context) []Check, extra ...func(context.Context) []string) *http.ServeMux {
	mux := http.NewServeMux()
	alive := func(w http.ResponseWriter, _ *http.Request) {
		plain(w, http.StatusOK, "ok\n")
	}
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		var (
			b      strings.Builder
			failed int
			all    = r.URL.Query().Has("verbose")
			checks []Check
		)
		if ready != nil {
			checks = ready(ctx)
		}
		for _, c := range checks {
			switch {
			case c.Err != nil:
				failed++
				fmt.Fprintf(&b, "%s FAIL: %s\n", c.Name, oneLine(c.Err.Error())) // also without ?verbose: it is why the answer is 503
			case all && c.Degraded != nil:
				fmt.Fprintf(&b, "%s DEGRADED: %s\n", c.Name, oneLine(c.Degraded.Error()))
			case all && c.Detail != "":
				fmt.Fprintf(&b, "%s ok: %s\n", c.Name, oneLine(c.Detail))
			case all:
				fmt.Fprintf(&b, "%s ok\n", c.Name)
			}
		}
		if all {
			for _, lines := range extra {
				for _, line := range lines(ctx) {
					fmt.Fprintf(&b, "%s\n", oneLine(line))
				}
			}
		}
		if failed > 0 {
			fmt.Fprintf(&b, "not ready: %d of %d checks fail\n", failed, len(checks))
			plain(w, http.StatusServiceUnavailable, b.String())
			return
		}
		b.WriteString("ready\n")
		plain(w, http.StatusOK, b.String())
	})
	mux.Handle("GET /metrics", Handler(reg))
	return mux
}

func plain(w http.ResponseWriter, status int, body string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// oneLine keeps one check on one line, whatever its error text holds.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
