package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Metric is one number read when the page is asked for, so that packages keep plain counters and only the
// roots know of Prometheus. Labels must come from small closed sets: never a customer, key or path.
type Metric struct {
	Name    string // without the bailiwick_ prefix; counters end in _total
	Help    string
	Counter bool
	Labels  map[string]string
	Read    func() float64
}

// Register adds metrics to a registry; it panics on a name given twice, which is a programming error.
func Register(reg *prometheus.Registry, metrics ...Metric) {
	for _, m := range metrics {
		if m.Counter {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "bailiwick_" + m.Name, Help: m.Help, ConstLabels: m.Labels}, m.Read))
		} else {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bailiwick_" + m.Name, Help: m.Help, ConstLabels: m.Labels}, m.Read))
		}
	}
}
