package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/shared/apikey"
)

// desk is an operator at an installation.
type desk struct {
	t   testing.TB
	in  *apitest.Installation
	env map[string]string
}

func newDesk(t testing.TB, wait time.Duration) *desk {
	t.Helper()
	in := apitest.New(t, wait)
	d := &desk{t: t, in: in, env: map[string]string{"BAILIWICK_ADMIN": in.Zones["emea"].Server.URL + ", " + in.Zones["us"].Server.URL}}
	d.token(apitest.Admin)
	return d
}

func (d *desk) token(token string) {
	d.t.Helper()
	d.env["BAILIWICK_TOKEN_FILE"] = d.file("token", token+"\n")
}

func (d *desk) file(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

func (d *desk) run(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(d.t.Context(), args, world{func(k string) string { return d.env[k] }, strings.NewReader(stdin), &out, &errs})
	return code, out.String(), errs.String()
}

// must runs a command that has to succeed, and reads its JSON.
func (d *desk) must(v any, args ...string) string {
	d.t.Helper()
	code, out, errs := d.run("", args...)
	if code != exitOK {
		d.t.Fatalf("bailiwick %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			d.t.Fatalf("bailiwick %s: %v in %s", strings.Join(args, " "), err, out)
		}
	}
	return out
}

// state is all that is stored, but for who was shown a customer's data last.
func (d *desk) state() string {
	var out []string
	for _, s := range []*apitest.Store{d.in.Catalog, d.in.Zones["emea"].Store, d.in.Zones["us"].Store} {
		for line := range strings.Lines(s.Dump()) {
			if !strings.HasPrefix(line, "read@") && !strings.HasPrefix(line, "audit@") {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "")
}

// manifests is the sandbox's directory, as the sandbox would write it.
func (d *desk) manifests() string {
	d.t.Helper()
	files, err := filepath.Glob("../../../deploy/sandbox/manifests/*.yaml")
	if err != nil || len(files) == 0 {
		d.t.Fatalf("sandbox manifests: %v, %d files", err, len(files))
	}
	dir := d.t.TempDir()
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		text := os.Expand(string(data), func(string) string { return "127.0.0.1:7301" })
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return dir
}

func seeded(t testing.TB) *desk {
	t.Helper()
	d := newDesk(t, time.Second)
	d.must(nil, "apply", "-f", d.manifests())
	return d
}

func TestApply_TakesEachDocumentToItsZone(t *testing.T) {
	d := newDesk(t, time.Second)
	dir, before := d.manifests(), d.state()
	if code, _, _ := d.run("", "diff", "-f", dir); code != exitUsage {
		t.Errorf("diff before: exit %d, want 2", code)
	}
	if d.state() != before {
		t.Error("a diff wrote")
	}
	out := d.must(nil, "apply", "-f", dir)
	if got := strings.Count(out, "created"); got != 19 {
		t.Errorf("got %d documents created, want 19:\n%s", got, out)
	}
	for zone, name := range map[string]string{"emea": "acme", "us": "umbrella"} {
		if !strings.Contains(d.in.Zones[zone].Store.Dump(), "customers/"+name) {
			t.Errorf("zone %s lacks customer %s", zone, name)
		}
	}
	if strings.Contains(d.in.Zones["us"].Store.Dump()+d.in.Catalog.Dump(), "acme") {
		t.Error("a customer of emea rests outside its zone")
	}
	if code, out, _ := d.run("", "diff", "-f", dir); code != exitOK || strings.Contains(out, "would") {
		t.Errorf("diff after: exit %d, want 0: %s", code, out)
	}
	// One bad document in one zone's batch: nothing is written in any.
	before = d.state()
	code, _, errs := d.run("kind: Customer\nname: a1\nspec: {zone: emea, subscriptions: [{plan: gold}]}\n---\nkind: Customer\nname: u1\nspec: {zone: us, subscriptions: [{plan: nope}]}\n", "apply", "-f", "-")
	if code != exitFailure || !strings.Contains(errs, "<stdin>:7: spec.subscriptions[0].plan: customer u1: plan \"nope\" does not exist (PLAN_UNKNOWN)") {
		t.Errorf("bad plan in us: exit %d: %s", code, errs)
	}
	if d.state() != before {
		t.Error("half of a refused input was written")
	}
}

// Input → exit code and reason; the state stays as it is.
func TestCommands_ExitCodes(t *testing.T) {
	d := seeded(t)
	free := "kind: Plan\nname: extra\nspec:\n  products: [commerce]\n"
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string
	}{
		{"unknown field", free + "  colour: red\n", []string{"apply", "-f", "-"}, exitFailure, "<stdin>:5: unknown field spec.colour"},
		{"blank name", "kind: Plan\nname: ''\nspec: {}\n", []string{"apply", "-f", "-"}, exitFailure, "name of this Plan is missing or blank (MANIFEST_INVALID)"},
		{"10 MB", strings.Repeat("# x\n", 10<<20/4), []string{"apply", "-f", "-"}, exitFailure, "at most 4 MiB"},
		{"unknown region", "kind: Policy\nname: p\nspec:\n  zone: emea\n  pairs:\n    - {from: eu-west, to: mars, basis: gdpr}\n", []string{"apply", "-f", "-"}, exitFailure, `<stdin>:6: spec.pairs[0].to: policy p: region "mars" does not exist (REGION_UNKNOWN)`},
		{"rule of the proto", "kind: LegalBasis\nname: b\nspec:\n  kind: hope\n", []string{"apply", "-f", "-"}, exitFailure, "<stdin>:4: spec.kind: "},
		{"nothing", "# nothing\n", []string{"apply", "-f", "-"}, exitFailure, "MANIFEST_EMPTY"},
		{"no such file", "", []string{"apply", "-f", "/nonexistent.yaml"}, exitFailure, "nonexistent"},
		{"no file named", "", []string{"apply"}, exitUsage, `required flag(s) "file" not set`},
		{"stale etag", "kind: Product\nname: commerce\netag: '1'\nspec: {apis: [orders]}\n", []string{"apply", "-f", "-"}, exitConflict, "ETAG_MISMATCH"},
		{"diff of a bad file", "kind: x", []string{"diff", "-f", "-"}, exitFailure, "kind"},
		{"unknown command", "", []string{"aply"}, exitUsage, "unknown command"},
		{"unknown flag", "", []string{"get", "regions", "--nope"}, exitUsage, "unknown flag"},
		{"unknown format", "", []string{"get", "regions", "-o", "xml"}, exitUsage, "none of table, json, yaml"},
		{"unknown kind", "", []string{"get", "things"}, exitUsage, "none of zones, regions"},
		{"group alone", "", []string{"key"}, exitUsage, "needs a command"},
		{"not found", "", []string{"get", "plans", "nope"}, exitNotFound, "PLAN_NOT_FOUND"},
		{"customer nowhere", "", []string{"key", "create", "--customer", "nobody"}, exitNotFound, "nor in any other zone (CUSTOMER_NOT_FOUND)"},
		{"key nowhere", "", []string{"key", "revoke", "abc"}, exitNotFound, "KEY_NOT_FOUND"},
		{"zone nowhere", "", []string{"get", "customers", "--zone", "apac"}, exitNotFound, "ZONE_NOT_FOUND"},
		{"in use", "", []string{"delete", "plan", "free"}, exitConflict, "IN_USE"},
		{"no such node", "", []string{"node", "remove", "x"}, exitNotFound, "NODE_NOT_FOUND"},
		{"join where nobody serves", "", []string{"join-token", "create", "--region", "eu-north", "--name", "e"}, exitFailure, "REGION_CONTROL_ONLY"},
		{"usage of what", "", []string{"usage"}, exitUsage, "needs one of"},
		{"usage since what", "", []string{"usage", "--customer", "acme", "--since", "yore"}, exitUsage, "neither an age"},
		{"usage of nobody", "", []string{"usage", "--customer", "nobody"}, exitNotFound, "CUSTOMER_NOT_FOUND"},
		{"close what", "", []string{"close", "--reason", "x"}, exitUsage, "needs one of"},
		{"reopen what", "", []string{"reopen", "x"}, exitNotFound, "CLOSURE_NOT_FOUND"},
		{"wide of what has no more columns", "", []string{"rollout", "list", "-o", "wide"}, exitUsage, "wide is of get and key list"},
		{"no such template", "", []string{"template", "mars"}, exitNotFound, "gdpr-emea"},
		{"no such CA file", "", []string{"get", "regions", "--ca-file", "/nonexistent"}, exitFailure, "CA file"},
		{"CA file without certificate", "", []string{"get", "regions", "--ca-file", "cli_test.go"}, exitFailure, "holds no certificate"},
		{"nobody there", "", []string{"get", "regions", "--admin", "http://127.0.0.1:1"}, exitUnavailable, "does not answer"},
		{"token over a network in clear", "", []string{"get", "regions", "--admin", "http://192.0.2.1:1"}, exitUnavailable, "the token is not sent"},
		{"no node known", "", []string{"get", "regions", "--admin", " , "}, exitUsage, "BAILIWICK_ADMIN"},
	} {
		before := d.state()
		code, out, errs := d.run(c.stdin, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, %s\nwant exit %d and %q", c.name, code, errs, c.code, c.want)
		}
		if out != "" {
			t.Errorf("%s: an error wrote to stdout: %s", c.name, out)
		}
		if d.state() != before {
			t.Errorf("%s: the state changed", c.name)
		}
	}
	for token, want := range map[string]string{"": "TOKEN_MISSING", "guess": "TOKEN_UNKNOWN", apitest.Viewer: "ROLE_INSUFFICIENT"} {
		d.token(token)
		if code, _, errs := d.run(free, "apply", "-f", "-"); code != exitDenied || !strings.Contains(errs, want) {
			t.Errorf("token %q: exit %d, %s; want 5 and %s", token, code, errs, want)
		}
	}
}

func TestKeys_AreFoundInWhicheverZone(t *testing.T) {
	d := seeded(t)
	for _, customer := range []string{"acme", "umbrella"} {
		var key struct{ ID, Key string }
		out := d.must(&key, "key", "create", "--customer", customer, "--plan", "gold", "-o", "json")
		zone, id, ok := apikey.Parse(key.Key)
		want := map[string]string{"acme": "emea", "umbrella": "us"}[customer]
		if !ok || zone != want || id != key.ID {
			t.Errorf("%s: got %s, want a key of zone %s", customer, out, want)
		}
		var list []struct{ ID, Status string }
		d.must(nil, "key", "revoke", key.ID)
		d.must(&list, "key", "list", "--customer", customer, "-o", "json")
		if len(list) != 1 || list[0].ID != key.ID || list[0].Status != "revoked" {
			t.Errorf("%s: list %v, want the one key revoked", customer, list)
		}
	}
}

// cutter kills the connection of the first answers of a procedure after the server did its work.
type cutter struct {
	next http.Handler
	path string
	left int
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, c.path) || c.left == 0 {
		c.next.ServeHTTP(w, r)
		return
	}
	c.left--
	c.next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

func TestCreateKey_LeavesNoKeyWithoutText(t *testing.T) {
	d := seeded(t)
	z := d.in.Zones["emea"]
	next := z.Server.Config.Handler
	z.Server.Config.Handler = &cutter{next, "/CreateKey", 1}
	// A second node of the same zone, published like the first.
	second := httptest.NewServer(next)
	defer second.Close()
	if code, _, errs := d.run("kind: Zone\nname: emea\nspec:\n  admin_urls: ["+z.Server.URL+", "+second.URL+"]\n", "apply", "-f", "-"); code != 0 {
		t.Fatal(errs)
	}
	var key struct{ ID, Key string }
	d.must(&key, "key", "create", "--customer", "acme", "-o", "json")
	var list []struct{ ID, Status string }
	d.must(&list, "key", "list", "--customer", "acme", "-o", "json")
	active := 0
	for _, k := range list {
		if k.Status == "active" {
			active++
			if k.ID != key.ID {
				t.Errorf("key %s is active and its text was never shown", k.ID)
			}
		}
	}
	if active != 1 || len(list) != 2 {
		t.Errorf("got %v, want one active key and one revoked", list)
	}
}

// Many keys too: whatever was made and not shown is revoked.
func TestCreateKeys_LeaveNoKeyWithoutText(t *testing.T) {
	d := seeded(t)
	z := d.in.Zones["emea"]
	next := z.Server.Config.Handler
	z.Server.Config.Handler = &cutter{next, "/CreateKeys", 1}
	second := httptest.NewServer(next)
	defer second.Close()
	if code, _, errs := d.run("kind: Zone\nname: emea\nspec:\n  admin_urls: ["+z.Server.URL+", "+second.URL+"]\n", "apply", "-f", "-"); code != 0 {
		t.Fatal(errs)
	}
	shown := map[string]bool{}
	for line := range strings.Lines(d.must(nil, "key", "create", "--customer", "acme", "--count", "7")) {
		id, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, of, ok := apikey.Parse(text); !ok || of != id {
			t.Errorf("line %q holds no id and key", line)
		}
		shown[id] = true
	}
	var list []struct{ ID, Status string }
	d.must(&list, "key", "list", "--customer", "acme", "-o", "json")
	for _, k := range list {
		if (k.Status == "active") != shown[k.ID] {
			t.Errorf("key %s is %s, shown: %v", k.ID, k.Status, shown[k.ID])
		}
	}
	if len(shown) != 7 || len(list) != 14 {
		t.Errorf("%d keys shown of %d, want 7 of 14", len(shown), len(list))
	}
	if code, _, _ := d.run("", "key", "create", "--customer", "acme", "--count", "0"); code != exitUsage {
		t.Errorf("none at all: exit %d", code)
	}
}

// What a script's empty variable would bind a key to is not taken for nothing, and what it is bound to is shown.
func TestCreateKeys_WhatBindsThemIsNeverEmpty(t *testing.T) {
	d := seeded(t)
	before := len(d.must(nil, "key", "list", "--customer", "acme"))
	for _, flag := range []string{"--allow-from", "--scope"} {
		if code, _, errs := d.run("", "key", "create", "--customer", "acme", flag, ""); code != exitUsage || !strings.Contains(errs, flag+" is empty") {
			t.Errorf("%s of nothing: exit %d, %s", flag, code, errs)
		}
	}
	if after := len(d.must(nil, "key", "list", "--customer", "acme")); after != before {
		t.Errorf("a key was made: %d bytes are listed, %d before", after, before)
	}
	d.must(nil, "key", "create", "--customer", "acme", "--allow-from", "192.0.2.0/24", "--scope", "orders:read")
	if out := d.must(nil, "key", "list", "--customer", "acme", "-o", "wide"); !strings.Contains(out, "192.0.2.0/24") || !strings.Contains(out, "orders:read") {
		t.Errorf("what a key is bound to is not shown:\n%s", out)
	}
}

// In a zone whose nodes are of two releases the call goes to a node that knows it, whichever is asked first; where none does the
// error says what to do, and nothing was made.
func TestCreateKeys_ANodeOfTheReleaseBefore(t *testing.T) {
	d := seeded(t)
	z := d.in.Zones["emea"]
	next := z.Server.Config.Handler
	second := httptest.NewServer(next)
	defer second.Close()
	z.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/CreateKeys") {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
	create := []string{"key", "create", "--customer", "acme", "--count", "3", "--zone", "emea"}
	if code, out, errs := d.run("", create...); code == exitOK || out != "" || !strings.Contains(errs, "NODE_OLDER") || !strings.Contains(errs, "upgrade") || !strings.Contains(errs, z.Server.URL) {
		t.Errorf("no node knows the call: exit %d, %q, %q, want NODE_OLDER, the node, and what to do", code, out, errs)
	}
	var list []struct{ ID string }
	if d.must(&list, "key", "list", "--customer", "acme", "-o", "json"); len(list) != 0 {
		t.Errorf("%d keys were made", len(list))
	}
	if code, _, errs := d.run("kind: Zone\nname: emea\nspec:\n  admin_urls: ["+z.Server.URL+", "+second.URL+"]\n", "apply", "-f", "-"); code != 0 {
		t.Fatal(errs)
	}
	if out := d.must(nil, create...); strings.Count(out, "\n") != 3 {
		t.Errorf("one of two nodes knows the call: got %q, want three keys", out)
	}
}

func TestGet_PrintsWhatApplyReads(t *testing.T) {
	d := seeded(t)
	var regions []struct {
		Kind, Name string
		Spec       struct{ Zone string }
	}
	d.must(&regions, "get", "regions", "-o", "json")
	if len(regions) != 5 || regions[0].Kind != "Region" || regions[0].Spec.Zone == "" {
		t.Errorf("regions: got %v", regions)
	}
	for _, k := range []string{"policies", "apis", "plans", "products", "legal-bases", "zones", "regions", "customers"} {
		text := d.must(nil, "get", k, "-o", "yaml")
		if _, err := manifest.Parse(k, []byte(text)); err != nil {
			t.Errorf("get %s -o yaml is no manifest: %v", k, err)
		}
		if code, out, errs := d.run(text, "diff", "-f", "-"); code != exitOK {
			t.Errorf("get %s then diff: exit %d, want 0\n%s%s", k, code, out, errs)
		}
		d.must(nil, "get", k)
	}
	if out := d.must(nil, "get", "api", "emea/orders"); !strings.Contains(out, "orders.emea.example.test") {
		t.Errorf("get api emea/orders: %s", out)
	}
	if out := d.must(nil, "get", "customers", "--all-zones"); !strings.Contains(out, "acme") || !strings.Contains(out, "umbrella") {
		t.Errorf("customers of all zones: %s", out)
	}
	if out := d.must(nil, "get", "customer", "umbrella"); !strings.Contains(out, "zone: us") {
		t.Errorf("get customer umbrella: %s", out)
	}
}

func TestNodeList_ShowsEachZonesOwnWord(t *testing.T) {
	d := seeded(t)
	var nodes []node
	d.must(&nodes, "node", "list", "-o", "json")
	for _, n := range nodes {
		if n.Status != "connected" || n.Kind == "edge" && (!n.InSync || n.Catalog == nil || *n.Catalog != *n.CatalogWant || n.ZonePosition.Sum != "abcd") {
			t.Errorf("got %+v, want connected and, of an edge, in sync", n)
		}
	}
	if len(nodes) != 4 {
		t.Errorf("got %d nodes, want 4", len(nodes))
	}
	for _, n := range nodes {
		if (len(n.Degraded) == 2) != (n.Name == "us-east-edge-1") {
			t.Errorf("%s: degraded %q, want only what us-east-edge-1 says", n.Name, n.Degraded)
		}
		if (n.SentinelViolations == 3) != (n.Name == "us-east-edge-1") || (n.SentinelLate == 1) != (n.Kind == "edge") {
			t.Errorf("%s: %d violations and %d late, want 3 of us-east-edge-1 and 1 of each edge", n.Name, n.SentinelViolations, n.SentinelLate)
		}
	}
	table := d.must(nil, "node", "list")
	if !strings.Contains(table, "connected, degraded: usage: the ledger refuses epoch 7") {
		t.Errorf("table does not say that an edge is degraded:\n%s", table)
	}
	if !strings.Contains(table, "NAME") || !strings.Contains(table, "1.9/abcd") || !strings.Contains(table, "2033-05-18T03:33:20Z") {
		t.Errorf("table:\n%s", table)
	}
	d.in.Zones["us"].Server.Close()
	code, out, errs := d.run("", "node", "list")
	if code != exitOK || !strings.Contains(errs, "zone us does not answer") || !strings.Contains(out, "us-east-edge-1") {
		t.Errorf("one zone away: exit %d\n%s%s", code, out, errs)
	}
	var leaders map[string]string
	if d.must(&leaders, "leaders", "-o", "json"); leaders["catalog"] != "node-1" || leaders["store/emea"] != "node-1" {
		t.Errorf("leaders: %v", leaders)
	}
	var token struct{ Token string }
	if d.must(&token, "join-token", "create", "--kind", "edge", "--region", "eu-west", "--name", "e2", "-o", "json"); token.Token != "jt-edge-eu-west-e2" {
		t.Errorf("join token: %v", token)
	}
}

func TestUsage_PrintsNumbers(t *testing.T) {
	d := seeded(t)
	cell := time.Now().UTC().Truncate(15 * time.Minute)
	d.in.Zones["us"].Usage.Set("umbrella", adminapi.UsageReport{CompleteThrough: cell, Rows: []adminapi.UsageRow{
		{Cell: cell, Product: "commerce", API: "orders", Route: "all", Plan: "gold", ServedRegion: "us-east", Outcome: "success", Requests: 3, Units: 3},
		{Cell: cell, Product: "commerce", API: "orders", Route: "all", Plan: "gold", Outcome: "limited", Requests: 2, Units: 2}}})
	out := d.must(nil, "usage", "--customer", "umbrella", "--since", "1h", "-o", "json")
	at := cell.Format(time.RFC3339)
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(out)); err != nil {
		t.Fatal(err)
	}
	want := `{"total":{"requests":3,"billable":3,"limited":2,"errors":0,"units":3},"rows":[` +
		`{"cell":"` + at + `","api":"orders","route":"all","plan":"gold","served_region":"us-east","outcome":"success","requests":3,"units":3},` +
		`{"cell":"` + at + `","api":"orders","route":"all","plan":"gold","served_region":"","outcome":"limited","requests":2,"units":2}],"complete_through":"` + at + `"}`
	if compact.String() != want {
		t.Errorf("got %s\nwant %s", compact.String(), want)
	}
	var all struct {
		Zones []struct {
			Zone  string
			Total struct{ Requests int }
		}
	}
	if d.must(&all, "usage", "--all-zones", "-o", "json"); len(all.Zones) != 2 || all.Zones[1].Total.Requests != 3 {
		t.Errorf("all zones: %+v", all)
	}
	d.must(nil, "usage", "--all-zones")
	d.must(nil, "usage", "--customer", "umbrella", "--since", "2020-01-01", "--until", "2020-01-02T00:00:00Z", "-o", "yaml")
}

func TestClose_IsTheZonesOwn(t *testing.T) {
	d := seeded(t)
	d.in.Catalog.SetDown(true)
	out := d.must(nil, "close", "--from", "us-east", "--to", "us-west", "--reason", "drill")
	if !strings.Contains(out, "Closure close-us-east-us-west created") || !strings.Contains(out, "closes us-east -> us-west in policy us, on us-law") {
		t.Errorf("close: %s", out)
	}
	if !strings.Contains(d.in.Zones["us"].Store.Dump(), "closures/close-us-east-us-west") {
		t.Error("zone us has no closure")
	}
	if status := d.must(nil, "border", "status"); !strings.Contains(status, "SENTINEL of us-east-edge-1 stopped 3 times") || !strings.Contains(status, "sentinels of 1 edges: 0 violations") {
		t.Errorf("border status does not say what sentinels stopped:\n%s", status)
	}
	d.must(nil, "reopen", "close-us-east-us-west")
	d.in.Catalog.SetDown(false)
	d.in.Zones["us"].Server.Close()
	code, _, errs := d.run("", "close", "--basis", "gdpr", "--reason", "court")
	if code != exitUnavailable || !strings.Contains(errs, "pending in zone us") {
		t.Errorf("close a basis with one zone away: exit %d: %s; want 6 and pending", code, errs)
	}
	if !strings.Contains(d.in.Zones["emea"].Store.Dump(), "closures/close-gdpr") {
		t.Error("zone emea did not close")
	}
}

func TestCatalogDown_ExitsSixAndSaysWhy(t *testing.T) {
	d := newDesk(t, 300*time.Millisecond)
	d.must(nil, "apply", "-f", d.manifests())
	d.in.Catalog.SetDown(true)
	d.in.Zones["emea"].Server.Close()
	code, _, errs := d.run("kind: Product\nname: p\nspec: {apis: [orders]}\n", "apply", "-f", "-")
	if code != exitUnavailable || !strings.Contains(errs, "need a quorum of the primary zone emea") || !strings.Contains(errs, "(CATALOG_NO_LEADER)") {
		t.Errorf("apply: exit %d: %s; want 6 and the reason", code, errs)
	}
	var key struct{ ID string }
	d.must(&key, "key", "create", "--customer", "umbrella", "-o", "json")
	if out := d.must(nil, "key", "revoke", key.ID); !strings.Contains(out, "Key "+key.ID+" revoked") || !strings.Contains(out, "waits for no ring") {
		t.Errorf("key revoke says %q", out)
	}
	code, _, errs = d.run("", "key", "create", "--customer", "acme")
	if code != exitUnavailable || !strings.Contains(errs, "zone emea") {
		t.Errorf("a customer of the zone that is away: exit %d: %s; want 6, never not found", code, errs)
	}
}

func TestSmallCommands(t *testing.T) {
	d := newDesk(t, time.Second)
	if out := d.must(nil, "template", "gdpr-emea"); !strings.Contains(out, "name: gdpr-emea") {
		t.Errorf("template: %s", out)
	}
	if out := d.must(nil, "template"); !strings.Contains(out, "uk\n") {
		t.Errorf("templates: %s", out)
	}
	five := "kind: API\nname: sold\nspec: {zone: emea, hosts: [sold.example.test]}\n---\nkind: Product\nname: core\nspec: {apis: [sold]}\n---\n" + d.must(nil, "template", "plans")
	if code, out, errs := d.run(five, "apply", "--dry-run", "-f", "-"); code != exitOK || !strings.Contains(out, "bronze") || !strings.Contains(out, "platinum") {
		t.Errorf("apply the template of plans: exit %d: %s %s", code, out, errs)
	}
	d.must(nil, "version")
	if out := d.must(nil, "completion", "bash"); !strings.Contains(out, "bailiwick") {
		t.Error("completion is empty")
	}
	d.must(nil, "--help")
}
