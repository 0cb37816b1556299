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
	Buckets func() Histogram // of a histogram, in place of Read
}

// Histogram is how often a value lay within each bound and no lower one, and beyond the last; Sum is that of all values.
type Histogram struct {
	Bounds []float64
	Each   []int64 // one more than there are bounds
	Sum    float64
}

// Type is what Prometheus calls it.
func (m Metric) Type() string {
	switch {
	case m.Buckets != nil:
		return "histogram"
	case m.Counter:
		return "counter"
	}
	return "gauge"
}

// Register adds metrics to a registry; it panics on a name given twice, which is a programming error.
func Register(reg *prometheus.Registry, metrics ...Metric) {
	for _, m := range metrics {
		name := "bailiwick_" + m.Name
		switch m.Type() {
		case "histogram":
			reg.MustRegister(histogram{prometheus.NewDesc(name, m.Help, nil, m.Labels), m.Buckets})
		case "counter":
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: m.Help, ConstLabels: m.Labels}, m.Read))
		default:
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: m.Help, ConstLabels: m.Labels}, m.Read))
		}
	}
}

type histogram struct {
	desc *prometheus.Desc
	read func() Histogram
}

func (h histogram) Describe(c chan<- *prometheus.Desc) { c <- h.desc }

func (h histogram) Collect(c chan<- prometheus.Metric) {
	at := h.read()
	buckets, all := map[float64]uint64{}, uint64(0)
	for i, n := range at.Each {
		all += uint64(n)
		if i < len(at.Bounds) {
			buckets[at.Bounds[i]] = all
		}
	}
	c <- prometheus.MustNewConstHistogram(h.desc, all, at.Sum, buckets)
}
