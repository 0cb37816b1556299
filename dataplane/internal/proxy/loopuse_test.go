//go:build linux

package proxy_test

import (
	"bufio"
	"io"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
)

// As many loops are in use as the process has work for.
func TestLoops_InUse(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	var at []time.Time
	var cpu []time.Duration
	look := func(n int, busy float64) { // n looks, with so many processors in use between
		for range n {
			last, used := start, time.Duration(0)
			if len(at) > 0 {
				last, used = at[len(at)-1].Add(250*time.Millisecond), cpu[len(cpu)-1]
			}
			at, cpu = append(at, last), append(cpu, used+time.Duration(busy*float64(250*time.Millisecond)))
		}
	}
	for _, c := range []struct {
		name string
		most int
		want []int
		do   func()
	}{
		{"little to do", 4, []int{1, 1, 1}, func() { look(3, 0.5) }},
		{"nearly one processor's", 4, []int{1, 1, 1, 1}, func() { look(1, 0); look(3, 0.89) }},
		{"more than one's", 4, []int{1, 2, 2, 2}, func() { look(1, 0); look(3, 1.1) }},
		{"three's at once", 4, []int{1, 4}, func() { look(1, 0); look(1, 3.1) }},
		{"more than there are", 2, []int{1, 2, 2}, func() { look(1, 0); look(2, 3.1) }},
		{"too much for one", 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, func() { look(1, 0); look(1, 1.1); look(10, 0.95) }},
		{"enough for one, for two seconds", 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1}, func() { look(1, 0); look(1, 1.1); look(9, 0.85) }},
		{"a moment's too much for one, and enough in all", 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 1}, func() { look(1, 0); look(1, 1.1); look(3, 0.8); look(1, 1.2); look(4, 0.8) }},
		{"a moment's little, and too much in all", 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 2}, func() { look(1, 0); look(1, 1.1); look(7, 1.1); look(1, 0.1) }},
		{"a while begins with what came into use", 4, []int{1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1}, func() { look(4, 0); look(1, 1.1); look(8, 0.5) }},
		{"and when it has gone by", 2, []int{1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1},
			func() { look(1, 0); look(1, 1.1); look(8, 1.5); look(8, 0.5) }},
		{"nobody looked for two seconds", 2, []int{1, 2, 1}, func() {
			look(1, 0)
			look(1, 1.1)
			at, cpu = append(at, at[1].Add(2*time.Second)), append(cpu, cpu[1]+time.Second)
		}},
		{"down by one at a time", 4, []int{1, 4, 4, 4, 4, 4, 4, 4, 4, 3}, func() { look(1, 0); look(1, 3.5); look(8, 0.1) }},
		{"what three are for", 4, []int{1, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3}, func() { look(1, 0); look(1, 3.5); look(16, 2.5) }},
	} {
		at, cpu = nil, nil
		c.do()
		if got := proxy.LoopsInUse(c.most, at, cpu); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// Connections follow when more loops come into use, and when fewer are; no request notices, and each is counted.
func TestLoops_ConnectionsFollow(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	}
	w := newWorld(t, nil)
	d := w.west.server.door
	d.UseLoops(1)
	var conns []net.Conn
	var ins []*bufio.Reader
	for range 8 {
		c, _ := w.dial()
		conns, ins = append(conns, c), append(ins, bufio.NewReader(c))
	}
	asked := 0
	ask := func(i int) {
		t.Helper()
		io.WriteString(conns[i], w.head("GET", "/v1/x", "\r\n"))
		if resp, body := read(t, ins[i], "GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
		asked++
	}
	settle := func(want ...int) {
		t.Helper()
		var got []int
		for range 50 {
			rest(t, d, len(conns), func() {
				for i := range conns {
					ask(i)
				}
			})
			if got = d.Homes()[:2]; slices.Equal(got, want) {
				return
			}
		}
		t.Errorf("loops have %v connections, want %v", got, want)
	}
	settle(8, 0)
	for range 3 {
		d.UseLoops(2)
		settle(4, 4)
		d.UseLoops(1)
		settle(8, 0)
	}
	if n := len(w.west.meter.since(0)); n != asked {
		t.Errorf("%d requests, %d rows", asked, n)
	}
}
