package subscribe_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
)

// refusing counts who knocks when, and lets nobody in.
type refusing struct {
	mu    sync.Mutex
	knock []time.Time
}

func (r *refusing) RoundTrip(*http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knock = append(r.knock, time.Now())
	return nil, errors.New("connection refused")
}

// In an outage edges that lost their streams in one moment knock ever more seldom, and not in step: when the node is back it
// is not run over. Each knocks at least every BackoffMax.
func TestRun_AnOutageDoesNotEndInStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const edges, longest = 60, 5 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		doors := make([]*refusing, edges)
		source := newSource(t)
		for i := range doors {
			doors[i] = &refusing{}
			client := &http.Client{Transport: doors[i]}
			c, err := subscribe.New(subscribe.Config{Dir: t.TempDir(), Edge: "w1", Region: "eu-west", Zone: "emea", SigningKey: source.priv.Public().(ed25519.PublicKey), Holder: new(policy.Holder),
				Addrs: func() []string { return []string{"emea-1"} }, HTTPClient: func(string) *http.Client { return client }, BackoffMax: longest,
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
			if err != nil {
				t.Fatal(err)
			}
			running.Go(func() {
				if err := c.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		began := time.Now()
		time.Sleep(time.Minute)
		cancel()
		running.Wait()
		var perTenth [600]int
		for i, d := range doors {
			last := began
			for _, at := range append(d.knock, began.Add(time.Minute)) {
				if at.Sub(last) > longest+10*time.Millisecond {
					t.Errorf("edge %d did not knock for %s", i, at.Sub(last))
				}
				last = at
				if n := int(at.Sub(began) / (100 * time.Millisecond)); n < len(perTenth) {
					perTenth[n]++
				}
			}
			if n := len(d.knock); n > 60 {
				t.Errorf("edge %d knocked %d times in a minute", i, n)
			}
		}
		most := 0
		for _, n := range perTenth[200:] { // the first rounds are short
			most = max(most, n)
		}
		// Some 24 knocks a second, two or three in a tenth. In step all 60 would fall into one.
		if most > edges/4 {
			t.Errorf("%d of %d edges knock within a tenth of a second", most, edges)
		}
	})
}
