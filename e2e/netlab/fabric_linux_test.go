package netlab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/netlab"
)

// The fabric itself: what is counted, captured, cut and delayed is exactly what it says.
func TestFabric_CountsCapturesCutsAndDelays(t *testing.T) {
	if !netlab.Inside() {
		cmd := netlab.Command("-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		err := cmd.Start()
		if err == nil {
			err = cmd.Wait()
		}
		missing := err == nil && strings.Contains(output.String(), "--- SKIP: "+t.Name())
		switch {
		case (err != nil && output.Len() == 0 || missing) && os.Getenv("BAILIWICK_CI") == "":
			t.Skipf("no fabric here: %v %s", err, output.String())
		case err != nil || !strings.Contains(output.String(), "--- PASS: "+t.Name()):
			t.Errorf("in the namespace: %v\n%s", err, output.String())
		}
		return
	}
	if err := netlab.Up(); err != nil {
		t.Fatal(err)
	}
	f, err := netlab.NewFabric()
	if errors.Is(err, netlab.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var hosts []*netlab.Host
	for i, address := range []string{"10.1.1.2", "10.2.1.2", "10.2.2.2"} {
		h, err := f.Host(fmt.Sprint("h", i), netip.MustParseAddr(address), filepath.Join(dir, fmt.Sprint("h", i)))
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		l, err := f.Listen(h, h.Address.String()+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
	}
	if err := f.Rules("table inet lab { counter crossed {}\n chain watched { ip saddr 10.1.0.0/16 ip daddr 10.2.0.0/16 counter name crossed; }\n }"); err != nil {
		t.Fatal(err)
	}
	patience := 30 * time.Second
	echo := func(from, to int, text string) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		start := time.Now()
		c, err := f.Dial(ctx, hosts[from], "tcp", hosts[to].Address.String()+":80")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		took := time.Since(start)
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.WriteString(c, text); err != nil {
			return 0, err
		}
		_, err = io.ReadFull(c, make([]byte, len(text)))
		return took, err
	}
	counted := func() uint64 {
		t.Helper()
		all, err := f.ResetCounters()
		if err != nil {
			t.Fatal(err)
		}
		return all["crossed"]
	}
	if _, err := echo(1, 2, "inside"); err != nil || counted() != 0 {
		t.Fatalf("within a zone: %v, or counted as crossing", err)
	}
	if _, err := echo(0, 1, "outside"); err != nil || counted() == 0 {
		t.Fatalf("between zones: %v, or not counted", err)
	}

	oneWay := "ip saddr 10.2.1.2 ip daddr 10.1.1.2 drop"
	heal, err := f.Fault(oneWay)
	if err != nil {
		t.Fatal(err)
	}
	patience = 700 * time.Millisecond
	if _, err := echo(0, 1, "cut"); err == nil || counted() == 0 {
		t.Errorf("cut on the way back: answers %v, want an error and counted packets", err)
	}
	patience = 30 * time.Second
	if _, err := echo(0, 2, "beside"); err != nil {
		t.Errorf("beside the cut: %v", err)
	}
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	if _, err := echo(0, 1, "healed"); err != nil {
		t.Errorf("healed: %v", err)
	}

	a, b := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	undelay, err := f.Delay(netlab.Late{Flow: netlab.Flow{From: a, To: b}, By: 100 * time.Millisecond}, netlab.Late{Flow: netlab.Flow{From: b, To: a}, By: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	const bothWays = 150 * time.Millisecond
	fastest := func(from, to int, text string) (best time.Duration, err error) { // a loaded machine adds to each of them
		best = time.Minute
		for range 20 {
			took, err := echo(from, to, text)
			if err != nil {
				return 0, err
			}
			if best = min(best, took); best < bothWays {
				break
			}
		}
		return best, nil
	}
	if took, err := echo(0, 1, "late"); err != nil || took < bothWays {
		t.Errorf("delayed by 150 ms both ways: took %s, %v", took, err)
	}
	if took, err := fastest(1, 2, "in time"); err != nil || took >= bothWays {
		t.Errorf("not delayed: took %s, %v", took, err)
	}
	if err := undelay(); err != nil {
		t.Fatal(err)
	}
	if took, err := fastest(0, 1, "as before"); err != nil || took >= bothWays {
		t.Errorf("no more delayed: took %s, %v", took, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{{"outside", "healed", "late"}, {"inside", "outside", "late"}, {"inside", "beside"}} {
		raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("h", i)))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range want {
			if bytes.Count(raw, []byte(text)) < 2 { // there and back
				t.Errorf("the capture of h%d has not %q there and back", i, text)
			}
		}
		if i == 0 && bytes.Contains(raw, []byte("inside")) {
			t.Error("h0 sees what the others say to each other")
		}
	}
}
