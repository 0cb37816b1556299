package scenario_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// controlStops: with no control node anywhere, home traffic sees no error, not even through an edge that dies
// and starts again. When they are back, every edge holds exactly what its zone says.
func controlStops(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	// An earlier test may have left an upstream on its ramp home; what is measured below begins at home.
	homeAgain(t, s, "both regions serve at home, wholly", func() error {
		for n := range 100 {
			region := []string{"eu-west", "eu-central"}[n%2]
			if err := ok(s.Get(region, key), region); err != nil {
				return err
			}
		}
		return nil
	})
	for _, name := range s.ControlsOf("") { // like an operator who means it
		s.Act("kill", name)
	}
	if _, _, code := s.CLI("emea", "get", "plans"); code != 6 {
		t.Errorf("get exits %d with every control node dead, want 6: are they?", code)
	}
	// An upstream that stalls for a moment, as on a busy machine, is no error: the pair answers, as it may.
	var home atomic.Int64
	load := harness.StartLoad(16, 100, func(n int64) error { // so many that slow answers are no fewer requests
		region := []string{"eu-west", "eu-central"}[n%2]
		a := s.Get(region, key)
		if a.Served() == region {
			home.Add(1)
		}
		return ok(a, "eu-west", "eu-central")
	})
	time.Sleep(5 * time.Second) // the measured time itself
	if failed, reasons := load.Stop(); failed > 0 || load.Sent.Load() < 300 {
		t.Errorf("without control nodes %d of %d requests failed, want none of at least 300: %v", failed, load.Sent.Load(), reasons)
	}
	if home.Load() < load.Sent.Load()/2 {
		t.Errorf("without control nodes %d of %d requests were served at home, want most", home.Load(), load.Sent.Load())
	}
	edge := s.EdgeOf("eu-west")
	s.Act("kill", edge.Name)
	if a := s.Get("eu-west", key); a.Err == nil {
		t.Fatalf("a dead edge answers %d", a.Status)
	}
	s.Act("start", edge.Name)
	took := within(t, time.Now(), 10*time.Second, "the edge serves from its table", func() error { return ok(s.Get("eu-west", key), "eu-west") })
	t.Logf("started again without a control plane, it served after %s", took.Round(time.Millisecond))
	s.Eventually(10*time.Second, "an edge that serves from its table is ready", func() error {
		if status := s.Ready(edge.Admin); status != http.StatusOK {
			return fmt.Errorf("readyz answers %d", status)
		}
		return nil
	})
	for _, c := range badKeys(t, key) { // it is the table that serves, not an open door
		if err := refused(s.Get("eu-west", c.key), 401, c.reason); err != nil {
			t.Errorf("%s, from the table: %v", c.name, err)
		}
	}
	s.ActAll("start", s.ControlsOf("")...)
	back := time.Now()
	within(t, back, 30*time.Second, "every edge is in sync", s.Synced)
	id, fresh := s.NewKey("emea", "initech", "unlimited")
	within(t, time.Now(), 3*time.Second, "a new key works", func() error { return ok(s.Get("eu-west", fresh), "eu-west") })
	s.MustCLI("emea", "key", "revoke", id)
	s.Settle()
}

// flippedTables: an edge whose table on disk differs in one byte, or is cut short, says so and serves nothing
// of it. With a control plane it would get a new one; so there is none here.
func flippedTables(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	edge := s.EdgeOf("eu-west")
	dir := filepath.Join(s.Dir, edge.Name, "table")
	for _, name := range s.ControlsOf("") {
		s.Act("kill", name)
	}
	s.Act("stop", edge.Name)
	good, size := readTree(t, dir)
	if size == 0 {
		t.Fatalf("%s holds no table", dir)
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	type damage struct {
		what string
		do   func(map[string][]byte)
	}
	var cases []damage
	for range 15 {
		at, bit := random.IntN(size), byte(1)<<random.IntN(8)
		cases = append(cases, damage{fmt.Sprintf("bit %#x of byte %d of %d flipped (seed %d)", bit, at, size, seed), func(files map[string][]byte) {
			for _, name := range sortedNames(files) {
				if at < len(files[name]) {
					files[name][at] ^= bit
					return
				}
				at -= len(files[name])
			}
		}})
	}
	for _, name := range sortedNames(good) {
		if len(good[name]) == 0 {
			continue // half of nothing is no damage
		}
		cases = append(cases, damage{name + " cut short", func(files map[string][]byte) { files[name] = files[name][:len(files[name])/2] }})
	}
	for _, c := range cases {
		files := cloneTree(good)
		c.do(files)
		writeTree(t, dir, files)
		before := len(s.Log(edge.Name))
		s.Act("start", edge.Name)
		s.Eventually(10*time.Second, c.what+": the edge says so", func() error {
			if err := ok(s.Get("eu-west", key)); err == nil {
				t.Errorf("%s: served", c.what)
			}
			if said := s.Log(edge.Name)[before:]; !regexp.MustCompile(`(?i)refus|newer program`).MatchString(said) {
				return fmt.Errorf("its log says %.300q", said)
			}
			return nil
		})
		for range 10 { // it has read its table by now: what follows is not a matter of time
			if err := ok(s.Get("eu-west", key)); err == nil {
				t.Errorf("%s: served after it was refused", c.what)
			}
			if status := s.Ready(edge.Admin); status == http.StatusOK {
				t.Errorf("%s: ready", c.what)
			}
			time.Sleep(20 * time.Millisecond)
		}
		_ = s.Try("kill", edge.Name) // it may have ended by itself
	}
	// The same way without damage: the table that was copied is good.
	writeTree(t, dir, good)
	s.Act("start", edge.Name)
	within(t, time.Now(), 10*time.Second, "the undamaged table serves", func() error { return ok(s.Get("eu-west", key), "eu-west") })

	// And a damaged one is healed by the control plane.
	s.Act("kill", edge.Name)
	files := cloneTree(good)
	cases[0].do(files)
	writeTree(t, dir, files)
	s.ActAll("start", s.ControlsOf("")...)
	s.Act("start", edge.Name)
	within(t, time.Now(), 30*time.Second, "a snapshot replaces the damaged table", func() error { return ok(s.Get("eu-west", key), "eu-west") })
	s.Settle()
}

// readTree reads the files of one directory.
func readTree(t *testing.T, dir string) (files map[string][]byte, size int) {
	t.Helper()
	files = map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = data
		size += len(data)
	}
	return files, size
}

func writeTree(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func cloneTree(files map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for name, data := range files {
		out[name] = bytes.Clone(data)
	}
	return out
}

// TestDroppedDelta: a build whose control nodes each lose their first delta. The edges notice within ten
// seconds and a snapshot heals them.
func TestDroppedDelta(t *testing.T) {
	t.Parallel()
	root := harness.Root(t)
	bin := t.TempDir()
	for _, name := range []string{"bailiwick", "bailiwick-edge"} {
		if err := os.Symlink(filepath.Join(root, "bin", name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-tags", "faults", "-o", filepath.Join(bin, "bailiwick-control"), "./controlplane/cmd/bailiwick-control")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with -tags faults: %v: %s", err, out)
	}
	s := harness.StartWith(t, harness.Options{Bin: bin, Env: []string{"BAILIWICK_FAULT_DROP_DELTA=1"}})
	// Fresh processes have their fault still before them, and edges whose sums are right are sent nothing: the
	// next change is the delta that each of them loses.
	sum := func(metric string) (n float64) {
		for _, url := range s.AdminURLs("emea") {
			s.Eventually(20*time.Second, url+" has the metric "+metric, func() error {
				v, found := s.Metric(url, metric)
				if n += v; !found {
					return errors.New("it is not there")
				}
				return nil
			})
		}
		return n
	}
	for range 3 { // unless one was lost to some other change on the way up
		s.Settle()
		s.ActAll("kill", s.ControlsOf("emea")...)
		s.ActAll("start", s.ControlsOf("emea")...)
		s.Settle()
		if sum("bailiwick_sync_dropped_deltas_total") == 0 {
			break
		}
	}
	dropped, nacks, snapshots := sum("bailiwick_sync_dropped_deltas_total"), sum("bailiwick_sync_nacks_total"), sum("bailiwick_sync_snapshots_total")
	changed := time.Now()
	_, key := s.NewKey("emea", "initech", "unlimited")
	within(t, changed, 10*time.Second, "the loss is noticed and healed", func() error {
		if got := sum("bailiwick_sync_dropped_deltas_total"); got == dropped {
			return errors.New("no delta was dropped: nothing is tested")
		}
		if got := sum("bailiwick_sync_nacks_total"); got == nacks {
			return errors.New("no edge has refused what it holds")
		}
		if got := sum("bailiwick_sync_snapshots_total"); got == snapshots {
			return errors.New("no snapshot was sent")
		}
		for _, region := range []string{"eu-west", "eu-central"} {
			if err := ok(s.Get(region, key), region); err != nil {
				return fmt.Errorf("the key of the lost delta at %s: %w", region, err)
			}
		}
		return nil
	})
	within(t, time.Now(), 15*time.Second, "every edge is in sync", s.Synced)
	_, next := s.NewKey("emea", "initech", "unlimited")
	for _, region := range []string{"eu-west", "eu-central"} {
		within(t, time.Now(), 2*time.Second, "the next delta arrives", func() error { return ok(s.Get(region, next), region) })
	}
}
