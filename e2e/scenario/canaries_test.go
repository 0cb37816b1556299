package scenario_test

import (
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/hosts/canary"
	"bailiwick/e2e/mutants/overlay"
)

var leaking = flag.Bool("leaks", false, "also run the builds that leak within their own zone: make e2e ARGS='-run TestCanaries -leaks'")

// rests says where in a zone a canary may rest, by the name of the directory in that of a node: design.md §5. What is
// not in it may rest nowhere: no header, query, path, body or secret of a key is written down at all.
var rests = map[string]struct{ control, edge []string }{
	"customer": {control: []string{"zone", "ledger", "detail"}, edge: []string{"table", "spool", "detail", "quota"}},
	"display":  {control: []string{"zone"}},
}

// mustRest are places where the search has to find something: it would be blind otherwise.
var mustRest = []string{"customer in the zone store", "customer in a table"}

// keptInPlace is the step of the story: what was planted in a zone's traffic is in that zone only where it may rest.
func keptInPlace(t *testing.T, s *harness.Sandbox) {
	for _, f := range misplaced(t, s) {
		t.Error(f)
	}
}

// misplaced plants canaries into the traffic of zone emea and searches all that the zone wrote and says: disks, logs,
// metrics, status pages, what edges told their control nodes of themselves, evidence, and what a process writes that dies.
func misplaced(t *testing.T, s *harness.Sandbox) (bad []string) {
	plant := map[string]string{}
	for _, name := range []string{"header", "cookie", "agent", "query", "path", "body", "display"} {
		plant[name] = rand.Text()
	}
	plant["customer"] = "c-" + strings.ToLower(rand.Text())
	s.MustCLI("emea", "apply", "-f", writeFile(t, "planted.yaml", "kind: Customer\nname: "+plant["customer"]+"\nspec: {zone: emea, display_name: "+plant["display"]+", subscriptions: [{plan: unlimited}]}\n"))
	id, key := s.NewKey("emea", plant["customer"], "unlimited")
	plant["secret"] = key[strings.LastIndex(key, "_")+1:]
	wrong := key[:strings.LastIndex(key, "_")+1] + rand.Text() + "abc"
	plant["wrong secret"] = wrong[strings.LastIndex(wrong, "_")+1:]

	sent := int64(0)
	send := func(c *http.Client, host, key string) harness.Answer {
		r, err := http.NewRequest(http.MethodPost, "https://"+host+"/v1/"+plant["path"]+"?q="+plant["query"], strings.NewReader(plant["body"]))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{"Authorization": "Bearer " + key, "X-Note": plant["header"], "Cookie": "c=" + plant["cookie"], "User-Agent": plant["agent"]} {
			r.Header.Set(k, v)
		}
		resp, err := c.Do(r)
		if err != nil {
			return harness.Answer{Err: err}
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return harness.Answer{Status: resp.StatusCode, Header: resp.Header, Err: err}
	}
	for _, region := range []string{"eu-west", "eu-central"} {
		for _, protocol := range []string{harness.HTTP1, harness.HTTP2} {
			c := s.ClientFor(protocol, region)
			within(t, time.Now(), 10*time.Second, "the key works in "+region, func() error {
				a := send(c, ordersEMEA, key)
				if a.Err == nil && a.Status != http.StatusOK {
					return fmt.Errorf("answered %d", a.Status)
				}
				return a.Err
			})
			sent++
			send(c, ordersEMEA, wrong)  // 401
			send(c, ordersUS, key)      // a foreign zone
			send(c, "nobody.test", key) // no such host
		}
	}
	west := s.ClientFor(harness.HTTP2, "eu-west") // an upstream that dies: relayed, or refused
	s.Act("kill", "orders@eu-west")
	send(west, ordersEMEA, key)
	s.Act("start", "orders@eu-west")
	within(t, time.Now(), 30*time.Second, "eu-west serves at home again", func() error { return ok(send(west, ordersEMEA, key), "eu-west") })
	s.Eventually(30*time.Second, "what was sent is counted, and its rows are kept", func() error {
		x, err := trace(s, plant["customer"])
		if err == nil && int64(len(x.Rows)) < sent {
			err = fmt.Errorf("%d rows, want at least %d", len(x.Rows), sent)
		}
		return err
	})
	s.MustCLI("emea", "key", "revoke", id)

	// What is said: by each node, by the control plane of its edges, and to auditors.
	said := map[string]string{}
	get := func(c *http.Client, url string) {
		resp, err := c.Get(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		said[url] = string(text)
	}
	pages := []string{"/metrics", "/healthz", "/readyz?verbose", "/debug/pprof/goroutine?debug=2", "/debug/vars"}
	for _, page := range pages {
		for _, e := range s.Edges {
			if e.Zone == "emea" {
				get(http.DefaultClient, e.Admin+page)
			}
		}
		for _, u := range s.AdminURLs("emea") {
			get(s.AdminHTTP(false), u+page)
		}
	}
	for _, args := range [][]string{{"node", "list"}, {"region", "list"}, {"border", "status"}, {"approval", "list"}, {"leaders"}, {"cluster", "members"}, {"usage", "--all-zones"},
		{"audit", "list", "--zone", "emea"}, {"compliance", "report", "--zone", "emea"}, {"usage", "refusals"}, {"usage", "epochs"}} {
		text, errs, code := s.CLI("emea", append(args, "-o", "json")...)
		if code != 0 {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
		said[strings.Join(args, " ")] = text + errs
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	s.MustCLI("emea", "evidence", "export", "--zone", "emea", "-f", bundle)

	// What a process writes that dies: all of its goroutines' stacks.
	if runtime.GOOS == "linux" {
		dies(t, s)
	}

	var canaries []canary.Canary
	for name, value := range plant {
		canaries = append(canaries, canary.Canary{Name: name, Value: []byte(value)})
	}
	scanner, err := canary.New(canaries...)
	if err != nil {
		t.Fatal(err)
	}
	began, seen := time.Now(), map[string]bool{}
	var total canary.Scanned
	tree := func(root string, allowed func(name, dir string) bool, kind string) {
		found, n, err := scanner.Tree(root)
		if err != nil {
			t.Fatal(err)
		}
		total.Files, total.Bytes = total.Files+n.Files, total.Bytes+n.Bytes
		for _, f := range found {
			rel, err := filepath.Rel(root, strings.TrimSuffix(f.Where, " (its name)"))
			if err != nil {
				t.Fatal(err)
			}
			dir, _, _ := strings.Cut(rel, string(filepath.Separator))
			switch {
			case !allowed(f.Canary, dir):
				bad = append(bad, fmt.Sprintf("the %s, as %s, is in %s of %s: %s", f.Canary, f.Encoding, dir, kind, rel))
			case dir == "zone":
				seen[f.Canary+" in the zone store"] = true
			default:
				seen[f.Canary+" in a "+dir] = true
			}
		}
	}
	for _, c := range s.Controls {
		if c.Zone == "emea" {
			tree(filepath.Join(s.Dir, c.Name), func(name, dir string) bool { return slices.Contains(rests[name].control, dir) }, c.Name)
		}
	}
	for _, e := range s.Edges {
		if e.Zone == "emea" {
			tree(filepath.Join(s.Dir, e.Name), func(name, dir string) bool { return slices.Contains(rests[name].edge, dir) }, e.Name)
		}
	}
	nowhere := func(string, string) bool { return false }
	for _, m := range s.Stores { // of the zone's etcd all is the zone store's, of the catalog's nothing of customers may be
		switch m.Cluster {
		case "emea":
			tree(filepath.Join(s.Dir, m.Name), func(name, _ string) bool {
				rest := slices.Contains(rests[name].control, "zone")
				if rest {
					seen[name+" in the zone store"] = true
				}
				return rest
			}, m.Name)
		case "catalog":
			tree(filepath.Join(s.Dir, m.Name), nowhere, m.Name)
		}
	}
	logs, err := filepath.Glob(filepath.Join(s.Dir, "logs", "*"))
	if err != nil || len(logs) < 8 {
		t.Fatalf("logs: %v, %v", logs, err)
	}
	for _, file := range append(logs, bundle) {
		if strings.Contains(filepath.Base(file), "@") || strings.HasPrefix(filepath.Base(file), "orders-") || strings.HasPrefix(filepath.Base(file), "reports-") {
			continue // an upstream is the seller's own
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said[filepath.Base(file)] = string(text)
	}
	for what, text := range said {
		total.Bytes += int64(len(text))
		for _, f := range scanner.Bytes(what, []byte(text)) {
			if !nowhere(f.Canary, "") {
				bad = append(bad, fmt.Sprintf("the %s, as %s, is in what is said: %s", f.Canary, f.Encoding, what))
			}
		}
	}
	for _, place := range mustRest {
		if !seen[place] {
			t.Errorf("the search does not find the %s: it is blind", place)
		}
	}
	t.Logf("%d canaries in %d files and %d texts, %d MB, searched in %s; allowed: %v", len(plant), total.Files, len(said), total.Bytes>>20, time.Since(began).Round(time.Millisecond), seen)
	slices.Sort(bad)
	return bad
}

// dies has an edge and a control node write all their stacks and end, and starts them again.
func dies(t *testing.T, s *harness.Sandbox) {
	t.Helper()
	pids := map[string]int{}
	for _, e := range s.Edges {
		if e.Region == "eu-central" {
			pids[e.Name] = e.PID
		}
	}
	for _, c := range s.Controls {
		if c.Region == "eu-north" {
			pids[c.Name] = c.PID
		}
	}
	for name, pid := range pids {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || !strings.HasPrefix(filepath.Base(exe), "bailiwick-") {
			t.Logf("%s was started anew since: it is not made to crash", name)
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		s.Eventually(20*time.Second, name+" writes its stacks and ends", func() error {
			if !strings.Contains(s.Log(name), "SIGQUIT: quit") {
				return fmt.Errorf("no stacks in its log")
			}
			if syscall.Kill(pid, 0) == nil {
				return fmt.Errorf("it is still there")
			}
			return nil
		})
		s.Eventually(20*time.Second, name+" is started anew", func() error { return s.Try("start", name) }) // once the sandbox has seen its end
	}
	s.Settle()
}

// A build that writes a header, a query or a customer's name where none may be is found, by the same search.
func TestCanaries_ALeakingBuildIsFound(t *testing.T) {
	if !*leaking {
		t.Skip("builds programs of its own and starts a sandbox: -leaks")
	}
	root := harness.Root(t)
	bin := t.TempDir()
	for _, program := range []string{"bailiwick", "bailiwick-control"} {
		if err := os.Symlink(filepath.Join(root, "bin", program), filepath.Join(bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	const path = "dataplane/internal/proxy/path.go"
	file, err := overlay.Write(root, t.TempDir(), []overlay.Edit{
		{File: path, Old: "	x.introduce(host)\n", New: "	x.introduce(host)\n\tprintln(\"note\", x.r.Header.Get(\"X-Note\"))\n\tprintln(\"asked\", hex.EncodeToString([]byte(x.r.URL.RawQuery)))\n"},
		{File: "dataplane/internal/proxy/fast.go", Old: "	if !r.Plain || ", New: "	if true || !r.Plain || "}, // common requests go the same way
		{File: path, Old: "	\"strings\"\n", New: "	\"encoding/hex\"\n\t\"strings\"\n"}})
	if err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", file, "-o", filepath.Join(bin, "bailiwick-edge"), "./dataplane/cmd/bailiwick-edge")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bad := misplaced(t, harness.StartWith(t, harness.Options{Bin: bin}))
	for _, want := range []string{`^the header, as raw, is in what is said: eu-west-edge-1.log$`, `^the query, as hex.*, is in what is said: eu-central-edge-1.log$`} {
		if !slices.ContainsFunc(bad, regexp.MustCompile(want).MatchString) {
			t.Errorf("%s is not found; found: %s", want, strings.Join(bad, "\n"))
		}
	}
}
