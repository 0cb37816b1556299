// Package failover owns where a request may go next: the health of this region's upstreams, the grants to
// relay, and the choice among them.
//
// It never sends a request, never dials and never widens a permission: it offers a candidate only if the
// newest table has the pair and a live grant covers it, and refuses when unsure. There is no panic mode.
// Nothing survives a crash: after a restart every target is taken for healthy and no grant is held, so home
// traffic goes on and relays wait for the control plane. Everything may be called from any number of
// goroutines at once.
package failover

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/upstream"
)

// Prober asks a target's health page once: nil if the answer is below 500. What stands behind a # in url is a service that
// grpc.health.v1 is asked about instead: nil if it serves. It must respect ctx.
type Prober interface {
	Probe(ctx context.Context, at upstream.Place, url string) error
}

// Names is what *upstream.Names does: the addresses of names, kept in the background.
type Names interface {
	Want(hosts []string)
	Addrs(host string) []netip.Addr
	Changed() <-chan struct{}
}

// Config of a Monitor. Tables, Prober and Logger are required.
type Config struct {
	Tables *policy.Holder
	Prober Prober
	Logger *slog.Logger

	Names Names                // nil: names are resolved by whoever dials
	Left  func(upstream.Place) // told of each target that is no more; nil: nobody

	ProbeTimeout  time.Duration // 0: 500 ms, where the API does not say. Longer than this is not an answer.
	ProbeInterval time.Duration // 0: 1 s, where the API does not say; of a healthy target without traffic.
	EjectAfter    int           // 0: 3 failed outcomes in a row, likewise
	GoodFor       time.Duration // 0: 10 s of good probes before a target returns, likewise
	Ramp          time.Duration // 0: 3 s; with GoodFor and a probe interval below 15 s in all
	HomeAnswers   int           // 0: 10 answers in a row as the last resort, and
	HomeFor       time.Duration // 0: 1 s of them, after which a target is home without waiting for GoodFor
	LivenessWait  time.Duration // 0: 50 ms; what a request waits at most for proof of life
	StallFloor    time.Duration // 0: 50 ms; below that no silence is a stall
	ProofFor      time.Duration // 0: 20 ms; how old proof of life may be before a request that cannot be repeated
	Places        int           // requests under way at once at this edge, a sixteenth of which may wait for one silent upstream; 0: 16,384
}

// Validate fills in the defaults.
func (c *Config) Validate() error {
	if c.Tables == nil || c.Prober == nil || c.Logger == nil {
		return errors.New("failover: Tables, Prober and Logger are required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.ProbeTimeout, 500*time.Millisecond)
	def(&c.ProbeInterval, time.Second)
	def(&c.GoodFor, 10*time.Second)
	def(&c.Ramp, 3*time.Second)
	def(&c.HomeFor, time.Second)
	def(&c.LivenessWait, 50*time.Millisecond)
	def(&c.StallFloor, 50*time.Millisecond)
	def(&c.ProofFor, 20*time.Millisecond)
	if c.HomeAnswers <= 0 {
		c.HomeAnswers = 10
	}
	if c.EjectAfter <= 0 {
		c.EjectAfter = 3
	}
	return nil
}

func (c *Config) timing() Timing {
	return Timing{EjectAfter: c.EjectAfter, GoodFor: c.GoodFor, Ramp: c.Ramp, HomeAnswers: c.HomeAnswers, HomeFor: c.HomeFor}
}

// hopeMost is how many requests wait for one upstream that has fallen silent.
func (c *Config) hopeMost() int {
	if c.Places <= 0 {
		return hopeMost
	}
	return min(hopeMost, max(2, c.Places/16))
}
