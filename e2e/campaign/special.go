package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/netlab"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// extra makes a customer for faults that need one of their own, or finds it.
func (w *world) extra(name string, quiet bool) *customer {
	for _, c := range w.special {
		if c.name == name {
			return c
		}
	}
	file := filepath.Join(w.dir, name+".yaml")
	text := fmt.Sprintf("kind: Customer\nname: %s\nspec: {zone: emea, subscriptions: [{plan: unlimited}]}\n", name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", file)
	c := &customer{name: name, zone: "emea", quiet: quiet}
	w.admit(c, "unlimited")
	w.special = append(w.special, c)
	return c
}

// quorum waits until the zone takes commands: faults before this one may just have ended.
func (w *world) quorum() error {
	for range 150 {
		if l := w.s.Leaders(); l["store/emea"] != "" && l["ledger/emea"] != "" && l["catalog"] != "" {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("emea has no leaders 15 s after the faults before")
}

func (w *world) slot() int {
	w.slots++
	return 10 + w.slots%10
}

// flip changes one bit in a copy of a killed edge's spool and starts an edge on the copy, which nobody hears. It
// must refuse to start and say why, or have everything that an unharmed copy has, or say what it has cut off.
func (w *world) flip(rng *rand.Rand) error {
	name := w.edge(rng)
	dir := filepath.Join(w.s.Dir, name)
	good, bad := filepath.Join(w.s.Dir, "flip-good"), filepath.Join(w.s.Dir, "flip-bad")
	defer os.RemoveAll(good)
	defer os.RemoveAll(bad)
	// Cut off, so that blocks wait in the spool.
	heal, err := netlab.Make(w.offControl(name, w.allControls()...)...)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	w.still(func() { err = w.act("kill", name) })
	if err == nil {
		err = errors.Join(exec.Command("cp", "-a", dir, good).Run(), exec.Command("cp", "-a", dir, bad).Run())
	}
	_, e := w.running(name)
	if err = errors.Join(err, e, heal()); err != nil {
		return err
	}
	file, at, err := flipBit(rng, filepath.Join(bad, "spool"))
	if err != nil {
		return err
	}
	want, _, err := w.alone(name, good)
	if err != nil {
		return fmt.Errorf("an unharmed copy does not start: %w", err)
	}
	got, log, err := w.alone(name, bad)
	where := fmt.Sprintf("byte %d of %s flipped: ", at, filepath.Base(file))
	said := regexp.MustCompile(`(?i)corrupt|damage|checksum|torn|cut off|cut short|truncat|unknown|malformed|does not`)
	switch {
	case err != nil && !said.MatchString(log):
		return fmt.Errorf("%sit refuses to start without a clear reason: %.300s", where, lastLine(log))
	case err == nil && got < want && !said.MatchString(log):
		return fmt.Errorf("%sit starts with %.0f blocks of %.0f and says nothing", where, got, want)
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// flipBit changes a bit that is in use, in a file of a directory.
func flipBit(rng *rand.Rand, dir string) (file string, at int64, err error) {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	files = slices.DeleteFunc(files, func(f string) bool { b := filepath.Base(f); return b == "lock" || b == "reserve" })
	rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, file = range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", 0, err
		}
		used := len(text)
		for used > 0 && text[used-1] == 0 {
			used--
		}
		if used == 0 {
			continue
		}
		at = rng.Int64N(int64(used))
		text[at] ^= 1 << rng.IntN(8)
		return file, at, os.WriteFile(file, text, 0o600)
	}
	return "", 0, errSkip
}

// alone starts an edge on a directory, heard by no control node, and returns how many blocks it holds.
func (w *world) alone(name, dir string) (blocks float64, log string, err error) {
	as := filepath.Base(dir)
	uid := w.apart.UID(as)
	var cuts []netlab.Cut
	for i, c := range w.s.Controls {
		cuts = append(cuts, netlab.Cut{UID: uid, Port: w.s.PeerPort(c.Name)}, netlab.Cut{UID: uid, Port: w.s.Base + 1 + i})
	}
	heal, err := netlab.Make(cuts...)
	if err != nil {
		return 0, "", err
	}
	defer heal()
	region := name[:strings.Index(name, "-edge-")]
	at := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", w.s.Base+n+70) }
	var said strings.Builder
	cmd := exec.Command(filepath.Join(w.apart.Bin, "bailiwick-edge"), "-dir", dir, "-name", name, "-region", region,
		"-https", at(443), "-http", at(80), "-relay", at(501), "-admin", at(901), "-allow-loopback-upstreams")
	cmd.Env = append(os.Environ(), "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return 0, "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { log = said.String() }()
	for begun := time.Now(); time.Since(begun) < startsWithin; {
		select {
		case err := <-ended:
			return 0, "", fmt.Errorf("it ended: %v: %s", err, lastLine(said.String()))
		case <-time.After(100 * time.Millisecond):
		}
		if n, found := w.s.Metric("http://"+at(901), "bailiwick_usage_blocks_unacked"); found {
			_ = cmd.Process.Kill()
			<-ended
			return n, "", nil
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	return 0, "", fmt.Errorf("it neither ended nor answered within %s", startsWithin)
}

// startsWithin is how long an edge is waited for that was started, as the harness waits for its own.
const startsWithin = time.Minute

// replay is an edge whose blocks arrive twice and in any order, over several sessions: they count once.
func (w *world) replay(rng *rand.Rand) error {
	if err := w.quorum(); err != nil {
		return err
	}
	c := w.extra("replayed", true)
	name := fmt.Sprintf("replayer-%d", w.slot()+w.slots*100)
	e := w.s.Join("emea", "eu-west", name)
	defer w.s.CLI("emea", "node", "remove", name)
	var blocks []usage.Block
	var head [32]byte
	var total int64
	for seq := uint64(1); seq <= 6; seq++ {
		n := 1 + rng.Int64N(9)
		total += n
		b := usage.NewBlock(name, 1, seq, head, usage.EncodePayload(map[usage.Cell]usage.Sums{{Start: usage.CellStart(time.Now().UnixMilli()), Customer: c.name,
			Subscription: "unlimited", Plan: "unlimited", PlanRev: 1, Product: "commerce", API: "orders", Route: "all", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}: {Requests: n, Units: n}}))
		blocks, head = append(blocks, b), b.Hash
	}
	c.sent.Add(total)
	c.completed.Add(total)
	w.upstreams["eu-west"].of(c.name).Add(total)
	var last error
	for range 30 {
		order := append(slices.Clone(blocks), blocks[rng.IntN(6)], blocks[rng.IntN(6)], blocks[rng.IntN(6)])
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		applied, err := w.bring(e, order)
		if err != nil {
			last = err
			time.Sleep(200 * time.Millisecond)
			continue
		}
		if applied == 6 {
			return nil
		}
	}
	return fmt.Errorf("six blocks are not applied after thirty sessions: %v", last)
}

// bring sends blocks one after another in a session and returns the watermark in the end.
func (w *world) bring(e *harness.Joined, order []usage.Block) (applied uint64, err error) {
	ctx, cancel := context.WithTimeout(w.ctx, 15*time.Second)
	defer cancel()
	stream, err := e.Ingest().Upload(ctx)
	if err != nil {
		return 0, err
	}
	defer stream.CloseResponse()
	defer stream.CloseRequest()
	say := func(m *usagev1.UploadRequest) error {
		if err := stream.Send(m); err != nil {
			return err
		}
		answer, err := stream.Receive()
		if err == nil && answer.GetWatermark() != nil {
			applied = answer.GetWatermark().GetAppliedSeq()
		}
		if r := answer.GetRefusal(); err == nil && r != nil && r.GetReason() != "GAP" {
			return fmt.Errorf("refused: %s: %s", r.GetReason(), r.GetDetail())
		}
		return err
	}
	if err := say(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_Hello{Hello: &usagev1.Hello{Epoch: 1}}}); err != nil {
		return 0, err
	}
	for _, b := range order {
		if err := say(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_Block{Block: &usagev1.Block{Epoch: 1, Seq: b.Seq, Prev: b.Prev[:], Payload: b.Payload, Hash: b.Hash[:]}}}); err != nil {
			return 0, err
		}
	}
	return applied, nil
}

// ledgerEpoch is what `usage epochs -o json` prints of one.
type ledgerEpoch struct {
	Edge, Status       string
	Epoch              uint64
	AppliedSeq         uint64 `json:"applied_seq"`
	SealedSeq          uint64 `json:"sealed_seq"`
	Gap                uint64
	Region, ClosedBy   string
	QuarantinedAtBlock uint64
}

func (w *world) epochs(edge string) ([]ledgerEpoch, error) {
	out, stderr, code := w.s.CLI("emea", "usage", "epochs", "--edge", edge, "-o", "json")
	if code != 0 {
		return nil, fmt.Errorf("usage epochs: exit code %d: %s", code, stderr)
	}
	var list []ledgerEpoch
	return list, json.Unmarshal([]byte(out), &list)
}

// dispose closes what an added edge has left and removes it, as an operator would.
func (w *world) dispose(edge string, sealed map[uint64]uint64) (lost uint64, err error) {
	if _, stderr, code := w.s.CLI("emea", "node", "remove", edge); code != 0 {
		return 0, fmt.Errorf("node remove: %s", stderr)
	}
	list, err := w.epochs(edge)
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		if e.Status == "closed" || e.Status == "complete" && sealed[e.Epoch] <= e.AppliedSeq {
			lost += e.Gap
			continue
		}
		args := []string{"usage", "close-epoch", edge, fmt.Sprint(e.Epoch), "--reason", "campaign: " + e.Status, "-o", "json"}
		if sealed[e.Epoch] > 0 {
			args = append(args, "--sealed", fmt.Sprint(sealed[e.Epoch]))
		}
		out, stderr, code := w.s.CLI("emea", args...)
		if code != 0 {
			return lost, fmt.Errorf("close epoch %d of %s: %s", e.Epoch, edge, stderr)
		}
		var closed []ledgerEpoch
		if err := json.Unmarshal([]byte(out), &closed); err != nil {
			return lost, err
		}
		for _, c := range closed {
			lost += c.Gap
		}
		w.closed++
	}
	return lost, nil
}

// serve sends requests of a customer through one added edge until it has answered n of them.
func (w *world) serve(c *customer, address string, n int64) error {
	was := c.completed.Load()
	for range 20 * n {
		w.ask(c, address)
		if c.completed.Load()-was >= n {
			return nil
		}
	}
	return fmt.Errorf("%s answers %d of %d requests", address, c.completed.Load()-was, n)
}

// cloneDisk: a second edge starts on a copy of a running one's disk. What both bring for one epoch is counted
// at most once, and that there are two is noticed.
func (w *world) cloneDisk(rng *rand.Rand) error {
	if err := w.quorum(); err != nil {
		return err
	}
	c := w.extra("twins", false)
	w.excuse(c)
	was, err := w.s.Usage(c.zone, c.name)
	if err != nil {
		return err
	}
	completed := c.completed.Load()
	slot := w.slot()
	name := fmt.Sprintf("twin-%d", w.slots)
	w.apart.UID(name)
	e := w.s.AddEdge("eu-west", name, slot)
	defer e.Stop()
	if err := w.serve(c, e.HTTPS, 50); err != nil {
		return err
	}
	heal, err := netlab.Make(w.offControl(name, w.allControls()...)...) // so that blocks wait when the copy is made
	if err != nil {
		return err
	}
	err = w.serve(c, e.HTTPS, 50)
	if rng.IntN(3) == 0 { // else some rows are not in a block yet, and the two go on differently
		time.Sleep(time.Second)
	}
	copied := filepath.Join(w.s.Dir, name+"-copy")
	err = errors.Join(err, exec.Command("cp", "-a", e.Dir, copied).Run())
	defer os.RemoveAll(copied)
	err = errors.Join(err, w.serve(c, e.HTTPS, 50), heal())
	if err != nil {
		return err
	}
	w.apart.UID(filepath.Base(copied))
	other := e.Copy(copied, 25)
	if err := other.Start(); err != nil {
		return err
	}
	defer other.Stop()
	for begun := time.Now(); w.s.Ready(other.Admin) != http.StatusOK && time.Since(begun) < startsWithin; {
		time.Sleep(100 * time.Millisecond)
	}
	err = errors.Join(w.serve(c, e.HTTPS, 50), w.serve(c, other.HTTPS, 50))
	for _, admin := range []string{e.Admin, other.Admin} { // each takes the other's session away, time and again
		for range 100 {
			unacked, _ := w.s.Metric(admin, "bailiwick_usage_blocks_unacked")
			parked, _ := w.s.Metric(admin, "bailiwick_usage_epochs_parked")
			if unacked == 0 || parked > 0 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	time.Sleep(time.Second)
	e.Stop()
	other.Stop()
	quarantined := 0
	list, e2 := w.epochs(name)
	for _, x := range list {
		if x.Status == "quarantined" {
			quarantined++
		}
	}
	if err = errors.Join(err, e2); err != nil {
		return err
	}
	w.measure("epochs quarantined", float64(quarantined))
	lost, err := w.dispose(name, nil)
	w.measure("blocks in gaps", float64(lost))
	is, e2 := w.s.Usage(c.zone, c.name)
	if err = errors.Join(err, e2); err != nil {
		return err
	}
	if missing := c.completed.Load() - completed - (is.Answered() - was.Answered()); missing > 0 && lost == 0 && quarantined == 0 {
		return fmt.Errorf("%d requests through %s and its copy are not counted, and neither a quarantine nor a gap tells of it: %+v\n%s\n%s", missing, name, list,
			aboutUsage(e.LogFile), aboutUsage(other.LogFile))
	}
	return nil
}

// loseDisk: an edge's disk is gone with blocks that nobody else has. The operator closes its epoch, and the gap
// is shown.
func (w *world) loseDisk(rng *rand.Rand) error {
	if err := w.quorum(); err != nil {
		return err
	}
	c := w.extra("bereft", false)
	w.excuse(c)
	slot := w.slot()
	name := fmt.Sprintf("doomed-%d", w.slots)
	w.apart.UID(name)
	e := w.s.AddEdge("eu-west", name, slot)
	defer e.Stop()
	if err := w.serve(c, e.HTTPS, 50); err != nil {
		return err
	}
	time.Sleep(time.Second)
	heal, err := netlab.Make(w.offControl(name, w.allControls()...)...)
	if err != nil {
		return err
	}
	err = w.serve(c, e.HTTPS, 50)
	time.Sleep(1500 * time.Millisecond)
	epoch, seq, e2 := w.lastSaid(e.Admin)
	e.Kill()
	err = errors.Join(err, e2, os.RemoveAll(filepath.Join(e.Dir, "spool")), heal())
	if err != nil {
		return err
	}
	if err := e.Start(); err != nil {
		return err
	}
	for begun := time.Now(); w.s.Ready(e.Admin) != http.StatusOK && time.Since(begun) < startsWithin; {
		time.Sleep(100 * time.Millisecond)
	}
	if err := w.serve(c, e.HTTPS, 20); err != nil {
		return fmt.Errorf("on an empty disk: %w", err)
	}
	e.Stop()
	lost, err := w.dispose(name, map[uint64]uint64{epoch: seq})
	if err != nil {
		return err
	}
	w.measure("blocks in gaps", float64(lost))
	if lost == 0 {
		return fmt.Errorf("epoch %d of %s ended at block %d on a lost disk, and no gap is reported", epoch, name, seq)
	}
	out, _, code := w.s.CLI("emea", "usage", "--customer", c.name, "--since", "24h", "-o", "json")
	if code != 0 || !strings.Contains(out, name) {
		return fmt.Errorf("usage does not name %s among the gaps", name)
	}
	return nil
}

// lastSaid is what an operator's monitoring has of an edge: its epoch and the last block it has sealed.
func (w *world) lastSaid(admin string) (epoch, seq uint64, err error) {
	response, err := http.Get(admin + "/readyz?verbose")
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	var line string
	for scanner := newLines(response.Body); scanner.Scan(); {
		if strings.Contains(scanner.Text(), "usage epoch=") {
			line = scanner.Text()
		}
	}
	m := regexp.MustCompile(`epoch=(\d+) seq=(\d+)`).FindStringSubmatch(line)
	if m == nil {
		return 0, 0, errors.New("readyz?verbose says nothing of usage")
	}
	_, err = fmt.Sscan(m[1]+" "+m[2], &epoch, &seq)
	return epoch, seq, err
}

func (w *world) excuse(c *customer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused[c.name] = true
}

func (w *world) measure(name string, n float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.measures[name] += n
}

// aboutUsage is what an edge has logged of its way up.
func aboutUsage(file string) string {
	text, _ := os.ReadFile(file)
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "usage") || strings.Contains(line, "ledger") {
			out = append(out, filepath.Base(file)+": "+strings.TrimSpace(line))
		}
	}
	return strings.Join(out[max(0, len(out)-15):], "\n")
}
