package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"

	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestCustomer_EraseAndVerify(t *testing.T) {
	d := newDesk(t, 300*time.Millisecond)
	apply := d.file("c.yaml", "kind: Plan\nname: p\nspec: {products: [core]}\n---\nkind: Product\nname: core\nspec: {apis: [orders]}\n---\nkind: API\nname: orders\nspec: {zone: us, hosts: [o.example.test]}\n---\nkind: Customer\nname: person\nspec: {zone: us, display_name: Erika, subscriptions: [{plan: p}]}\n")
	if code, _, errs := d.run("", "apply", "-f", apply); code != exitOK {
		t.Fatalf("apply: %s", errs)
	}
	if code, out, _ := d.run("", "customer", "export", "person"); code != exitOK || !strings.Contains(out, "Erika") {
		t.Errorf("export: exit %d, %s", code, out)
	}
	exported := filepath.Join(t.TempDir(), "person.json")
	if code, out, errs := d.run("", "customer", "export", "person", "-f", exported); code != exitOK || out != "" {
		t.Errorf("export to a file: exit %d, %s %s", code, out, errs)
	}
	if text, err := os.ReadFile(exported); err != nil || !strings.Contains(string(text), "Erika") {
		t.Errorf("exported file: %v, %s", err, text)
	}
	if code, out, _ := d.run("", "customer", "export", "nobody", "-f", exported+"2"); code != exitNotFound || out != "" {
		t.Errorf("export of nobody: exit %d, %s", code, out)
	}
	if info, err := os.Stat(exported); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("exported file: %v, %v", info, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(exported), "*")); len(left) != 1 {
		t.Errorf("an export leaves %v", left)
	}
	d.in.Zones["us"].Detail.SetDown(true)
	if code, out, errs := d.run("", "customer", "export", "person"); code != exitOK || !strings.Contains(errs, "missing: detail on node us-1") || !strings.HasSuffix(out, "}\n") {
		t.Errorf("export without a node: exit %d, %s", code, errs)
	}
	d.in.Zones["us"].Detail.SetDown(false)
	for range 10 { // so that the zone is ahead of what its edge reports in this world
		if code, _, errs := d.run("", "key", "create", "--customer", "person"); code != exitOK {
			t.Fatal(errs)
		}
	}
	file := filepath.Join(t.TempDir(), "erasure.json")
	if code, _, _ := d.run("", "customer", "erase", "person", "--reason", "asked"); code != exitUsage {
		t.Errorf("erase without --yes: exit %d, want %d", code, exitUsage)
	}
	code, _, errs := d.run("", "customer", "erase", "person", "--reason", "asked", "--yes", "-f", file)
	if code != exitOK || !strings.Contains(errs, "us-east-edge-1") {
		t.Fatalf("erase: exit %d, %s; want a warning of the edge that is pending", code, errs)
	}
	key := base64.StdEncoding.EncodeToString(d.in.Zones["us"].Signer.Public().(ed25519.PublicKey))
	for _, args := range [][]string{{"customer", "verify-erasure", file}, {"--admin", "http://127.0.0.1:1", "customer", "verify-erasure", file, "--key", key}} {
		if code, out, errs := d.run("", args...); code != exitOK || !strings.Contains(out, "customer person") {
			t.Errorf("%v: exit %d, %s %s", args, code, out, errs)
		}
	}
	// Whatever form it was written in, a statement can be checked; what is none says what to do.
	for _, form := range []string{"table", "json", "yaml"} {
		_, out, _ := d.run("", "customer", "erase", "person", "--reason", "asked", "--yes", "-o", form)
		if code, out, errs := d.run("", "customer", "verify-erasure", d.file("out", out), "--key", key); code != exitOK || !strings.Contains(out, "customer person") {
			t.Errorf("what -o %s wrote: exit %d, %s %s", form, code, out, errs)
		}
		if code, _, _ := d.run("", "customer", "verify-erasure", d.file("out", strings.ReplaceAll(out, "asked", "axed")), "--key", key); code != exitDenied {
			t.Errorf("what -o %s wrote, changed: exit %d, want %d", form, code, exitDenied)
		}
	}
	for _, text := range []string{"", "{}", "no statement", "{\n\"format\": \"bailiwick-erasure/1\"\n}\n"} {
		if code, _, errs := d.run("", "customer", "verify-erasure", d.file("out", text), "--key", key); code != exitFailure || !strings.Contains(errs, "-f FILE") {
			t.Errorf("%q: exit %d, %s", text, code, errs)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	doc["statement"] = strings.Replace(doc["statement"].(string), "asked", "axed", 1)
	changed, _ := json.Marshal(doc)
	if code, _, _ := d.run("", "customer", "verify-erasure", d.file("changed.json", string(changed))); code != exitDenied {
		t.Errorf("a changed statement: exit %d, want %d", code, exitDenied)
	}
}

func TestUsageTrace_SaysWhatDiffers(t *testing.T) {
	d := newDesk(t, time.Second)
	z := d.in.Zones["us"]
	at := time.Now().Add(-time.Hour).Truncate(15 * time.Minute).UTC()
	row := func(route string, n int64) adminapi.UsageRow {
		return adminapi.UsageRow{Cell: at, API: "orders", Route: route, Plan: "gold", ServedRegion: "us-east", Outcome: "success", Requests: n, Units: n}
	}
	z.Usage.Set("stark", adminapi.UsageReport{Rows: []adminapi.UsageRow{row("get", 5), row("list", 3)}, CompleteThrough: time.Now()})
	cell := func(route string) adminapi.TraceCell {
		return adminapi.TraceCell{Start: at.Unix(), API: "orders", Route: route, Plan: "gold", ServedRegion: "us-east", Outcome: "success"}
	}
	z.Detail.Set(adminapi.Traced{Cells: map[adminapi.TraceCell]*adminapi.TraceSums{
		cell("get"): {Requests: 5, Units: 5, Blocks: []string{"e/1/1", "e/1/2", "e/1/3", "e/1/4"}}, cell("list"): {Requests: 2, Units: 2}},
		Rows: []*adminv1.TraceRow{{RequestId: "0190-x", End: timestamppb.New(at), Edge: "e", Epoch: 1, Seq: 4, Status: 200}}, KeptSince: at.Add(-time.Hour)})
	code, out, errs := d.run("", "usage", "trace", "--customer", "stark", "--since", "3h", "--zone", "us")
	if code != exitOK || !strings.Contains(out, "same") || !strings.Contains(out, "DIFFERS") || !strings.Contains(out, "e/1/1 … e/1/4 (4)") || !strings.Contains(out, "0190-x") {
		t.Errorf("exit %d, %s\n%s", code, errs, out)
	}
	// Of one request the cell is not compared, and time begins where the id says.
	_, out, errs = d.run("", "usage", "trace", "--customer", "stark", "--zone", "us", "--request-id", "019ac4f2-8a10-7bcd-9123-456789abcdef")
	if asked := z.Detail.Asked(); strings.Contains(out, "DIFFERS") || !strings.Contains(out, "0190-x") || asked[len(asked)-1].Since.AsTime().Unix()/900 != (0x019ac4f28a10/1000-60)/900 {
		t.Errorf("one request: %s since %v\n%s", errs, asked[len(asked)-1].Since.AsTime(), out)
	}
	var doc struct {
		Cells []struct {
			Requests, Rows int64
			Blocks         []string
		}
	}
	d.must(&doc, "usage", "trace", "--customer", "stark", "--since", "3h", "--zone", "us", "-o", "json")
	if len(doc.Cells) != 2 || doc.Cells[0].Rows != 5 || len(doc.Cells[0].Blocks) != 4 || doc.Cells[1].Requests != 3 || doc.Cells[1].Rows != 2 {
		t.Errorf("JSON: %+v", doc)
	}
}
