package dataplane

import (
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/subscribe"
	"bailiwick/shared/telemetry"
)

const metricsPage = "../docs/metrics.md"

// The page of metrics has a line of each: what it is called, its type, its labels with all their values, and what it means.
// UPDATE=1 writes them.
func TestMetrics_ThePageHasEach(t *testing.T) {
	raw, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	values := map[string]map[string][]string{}
	e := &Edge{follow: &subscribe.Client{}}
	names := regexp.MustCompile(`^[a-z][a-z0-9_]*[a-z0-9]$`)
	for _, m := range e.metrics() {
		switch {
		case !names.MatchString(m.Name), m.Counter != strings.HasSuffix(m.Name, "_total"), m.Help == "" || m.Help[len(m.Help)-1] != '.' || strings.Contains(m.Help, "|"):
			t.Errorf("%s (%s, %q) is not called as metrics are", m.Name, m.Type(), m.Help)
		}
		of := values[m.Name]
		if of == nil {
			of = map[string][]string{}
			values[m.Name] = of
		}
		for k, v := range m.Labels {
			if !slices.Contains(of[k], v) {
				of[k] = append(of[k], v)
			}
		}
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(of)) {
			labels = append(labels, "`"+k+"`: "+strings.Join(of[k], ", "))
		}
		lines[m.Name] = fmt.Sprintf("| `bailiwick_%s` | %s | %s | %s |", m.Name, m.Type(), strings.Join(labels, "; "), m.Help)
	}
	if len(lines) < 60 {
		t.Fatalf("%d metrics: the test checks little", len(lines))
	}
	var want []string
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		want = append(want, lines[name])
	}
	const head = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
	before, table, ok := strings.Cut(string(raw), head)
	if !ok {
		t.Fatalf("%s has no table", metricsPage)
	}
	table, after, _ := strings.Cut(table, "\n\n")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(metricsPage, []byte(before+head+strings.Join(want, "\n")+"\n\n"+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got := strings.Split(strings.TrimSpace(table), "\n")
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("%s lacks %s", metricsPage, l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("%s has %s, which the program has not (UPDATE=1 writes the page)", metricsPage, l)
		}
	}
	// What the guide says to look at is there.
	guide, err := os.ReadFile("../docs/running.md")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`bailiwick_[a-z0-9_]+`).FindAllString(string(guide), -1)
	for _, name := range said {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "bailiwick_"), "_bucket")
		if lines[name] == "" {
			t.Errorf("docs/running.md speaks of bailiwick_%s, which the program has not", name)
		}
	}
	if len(said) < 10 {
		t.Errorf("docs/running.md names %d metrics", len(said))
	}
}

// A registry takes all of them together: no name has two helps, types or sets of labels.
func TestMetrics_GoTogether(t *testing.T) {
	e := &Edge{follow: &subscribe.Client{}}
	var all []telemetry.Metric
	for _, m := range e.metrics() {
		m.Read = func() float64 { return 1 }
		if m.Buckets != nil {
			m.Buckets = func() telemetry.Histogram {
				return telemetry.Histogram{Bounds: []float64{0.5, 1}, Each: []int64{1, 2, 3}, Sum: 9}
			}
		}
		all = append(all, m)
	}
	reg := telemetry.NewRegistry()
	telemetry.Register(reg, all...)
	rec := httptest.NewRecorder()
	telemetry.Handler(reg).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{`bailiwick_requests_total{outcome="success",protocol="2"} 1`, `bailiwick_refusals_total{reason="rate-exceeded"} 1`, `bailiwick_requests_shed_total{at="edge",class="free"} 1`,
		`bailiwick_request_duration_seconds_bucket{le="0.5"} 1`, `bailiwick_request_duration_seconds_bucket{le="1"} 3`, `bailiwick_request_duration_seconds_bucket{le="+Inf"} 6`, `bailiwick_request_duration_seconds_sum 9`,
		`bailiwick_request_duration_seconds_count 6`, `bailiwick_http2_streams_reset_total{code="enhance_your_calm"} 1`} {
		if !strings.Contains(rec.Body.String(), "\n"+line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}
