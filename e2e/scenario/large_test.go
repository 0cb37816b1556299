package scenario_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// roomForBodies is by how much an edge may grow while bodies of any length pass, several ways at once.
const roomForBodies = 64 << 20

// TestLarge: 1 GiB up and 1 GiB down at once, over HTTP/1.1, 2 and 3, at home and across a relay: all of it arrives as it was sent, is
// counted, and neither edge's process grows by more than 64 MiB. `make large` runs it.
func TestLarge(t *testing.T) {
	if os.Getenv("BAILIWICK_LONG") == "" {
		t.Skip("minutes: make large")
	}
	size := int64(1 << 30)
	if mib, err := strconv.ParseInt(os.Getenv("BAILIWICK_LONG"), 10, 64); err == nil && mib > 1 {
		size = mib << 20
	}
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	s := harness.Start(t)
	x := newEvery(t, s)
	for _, client := range x.clients {
		client.Timeout = 30 * time.Minute
	}
	for _, at := range []*everything{x.west, x.central} {
		x.at = at
		x.served(at.region)
		for _, protocol := range []string{harness.HTTP1, harness.HTTP2, viaHTTP3} {
			before, most := memoryOf(t, s, "eu-west", "eu-central")
			over, watched := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(watched)
				for {
					select {
					case <-over:
						return
					case <-time.After(50 * time.Millisecond):
						most()
					}
				}
			}()
			began := time.Now()
			resp := x.open(t.Context(), protocol, "huge", (2*size+16<<20-1)/(16<<20), "POST", fmt.Sprintf("/huge?bytes=%d", size), &striped{n: size})
			if err := alike(resp.Body, size); err != nil {
				t.Errorf("over %s by %s: %v", protocol, at.region, err)
			}
			resp.Body.Close()
			took := time.Since(began)
			close(over)
			<-watched
			for region, grown := range most() {
				t.Logf("%s by %s: %d MiB each way in %v; the edge of %s had %d MiB before and %d more at most", protocol, at.region, size>>20, took.Round(time.Millisecond), region, before[region]>>20, grown>>20)
				if grown > roomForBodies {
					t.Errorf("%s by %s: the edge of %s grew by %d MiB, want %d at most", protocol, at.region, region, grown>>20, roomForBodies>>20)
				}
			}
		}
		if at == x.west {
			x.relays()
		}
	}
	x.counted()
}

// memoryOf is what edges' processes hold of memory, and a func that says by how much more they have ever held since.
func memoryOf(t *testing.T, s *harness.Sandbox, regions ...string) (before map[string]int64, most func() map[string]int64) {
	read := func(region string) (rss int64) {
		for _, e := range s.Edges {
			if e.Region != region {
				continue
			}
			status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(e.PID), "status"))
			if err != nil {
				t.Errorf("memory of %s: %v", e.Name, err)
			}
			for line := range strings.Lines(string(status)) {
				if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					n, _ := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
					rss += n << 10
				}
			}
		}
		return rss
	}
	before = map[string]int64{}
	grown := map[string]*atomic.Int64{}
	for _, region := range regions {
		before[region], grown[region] = read(region), &atomic.Int64{}
	}
	return before, func() map[string]int64 {
		out := map[string]int64{}
		for region, g := range grown {
			g.Store(max(g.Load(), read(region)-before[region]))
			out[region] = g.Load()
		}
		return out
	}
}
