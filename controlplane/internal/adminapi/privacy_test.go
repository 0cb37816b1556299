package adminapi_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/erasure"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	usagepkg "bailiwick/shared/usage"
)

func customersAt(z *apitest.Zone, token string) adminv1connect.CustomerServiceClient {
	return adminv1connect.NewCustomerServiceClient(apitest.Client(token), z.Server.URL, faults)
}

func TestTraceUsage_HoldsTheLedgerAgainstRows(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	apply(t, z, "kind: Customer\nname: acme\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	at := time.Now().Truncate(15 * time.Minute).UTC()
	row := func(route, outcome string, requests, units int64, correction bool) adminapi.UsageRow {
		return adminapi.UsageRow{Cell: at, API: "orders", Route: route, Plan: "gold", ServedRegion: "eu-west", Outcome: outcome, Requests: requests, Units: units, Correction: correction}
	}
	z.Usage.Set("acme", adminapi.UsageReport{Rows: []adminapi.UsageRow{row("get", "success", 4, 8, false), row("get", "success", 1, 2, false), row("list", "success", 7, 7, false), row("get", "success", -3, -3, true)},
		Late: []ledger.Row{{Kind: ledger.Late, Cell: usagepkg.Cell{Start: at.Unix(), API: "orders", Route: "list", Plan: "gold", ServedRegion: "eu-west", Outcome: usagepkg.OutcomeSuccess}, Sums: usagepkg.Sums{Requests: 1, Units: 1}}}})
	cell := func(route string) adminapi.TraceCell {
		return adminapi.TraceCell{Start: at.Unix(), API: "orders", Route: route, Plan: "gold", ServedRegion: "eu-west", Outcome: "success"}
	}
	z.Detail.Set(adminapi.Traced{Cells: map[adminapi.TraceCell]*adminapi.TraceSums{cell("get"): {Requests: 5, Units: 10, Blocks: []string{"e/1/1"}}, cell("put"): {Requests: 1, Units: 1}},
		Unreachable: []string{"emea-2"}, KeptSince: at.Add(-time.Hour)})
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	got, err := usage.TraceUsage(t.Context(), &adminv1.TraceUsageRequest{Customer: "acme", Since: timestamppb.New(at.Add(5 * time.Minute)), Until: timestamppb.New(at.Add(6 * time.Minute))})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range got.Cells {
		lines = append(lines, strings.Join([]string{c.Route, string(rune('0' + c.Requests)), string(rune('0' + c.Rows)), string(rune('0' + c.Units%10)), string(rune('0' + c.RowUnits%10))}, " "))
	}
	// Cells that differ in what a trace does not show are one; what came late counts; corrections have no requests behind them.
	if want := []string{"get 5 5 0 0", "list 8 0 8 0", "put 0 1 0 1"}; !slices.Equal(lines, want) {
		t.Errorf("cells %q, want %q", lines, want)
	}
	if !slices.Equal(got.Unreachable, []string{"emea-2"}) || got.Cells[0].Blocks[0] != "e/1/1" {
		t.Errorf("unreachable %v, blocks %v", got.Unreachable, got.Cells[0].Blocks)
	}
	if q := z.Detail.Asked()[0]; !q.Since.AsTime().Equal(at) || !q.Until.AsTime().Equal(at.Add(15*time.Minute)) || q.Limit != 1000 {
		t.Errorf("asked for %v to %v, %d rows; want the whole cell and 1000", q.Since.AsTime(), q.Until.AsTime(), q.Limit)
	}
	one, err := usage.TraceUsage(t.Context(), &adminv1.TraceUsageRequest{Customer: "acme", RequestId: "019ac4f2-8a10-7bcd-9123-456789abcdef"})
	if asked := z.Detail.Asked(); err != nil || hex.EncodeToString(asked[len(asked)-1].RequestId) != "019ac4f28a107000800000000"+"0abcdef" || len(one.Cells) != 2 {
		t.Errorf("of one request: %v; asked for %x, got cells %v, want the id as detail keeps it and the cells that have rows", err, asked[len(asked)-1].RequestId, one.GetCells())
	}
	for _, bad := range []string{"019ac4f2", "019ac4f2-8a10-7bcd-9123-456789abcdeg", "019ac4f28a107bcd9123456789abcdef0000"} {
		if _, err := usage.TraceUsage(t.Context(), &adminv1.TraceUsageRequest{Customer: "acme", RequestId: bad}); fault.ReasonOf(err) != "REQUEST_ID_INVALID" {
			t.Errorf("request id %s: %v", bad, err)
		}
	}
	if _, err := usage.TraceUsage(t.Context(), &adminv1.TraceUsageRequest{Customer: "nobody"}); fault.ReasonOf(err) != "CUSTOMER_NOT_FOUND" {
		t.Errorf("trace of nobody: %v", err)
	}
	if _, err := usage.TraceUsage(t.Context(), &adminv1.TraceUsageRequest{Customer: "acme", Outcome: "fine"}); fault.ReasonOf(err) != "OUTCOME_UNKNOWN" {
		t.Errorf("an outcome that does not exist: %v", err)
	}
}

func TestErase_TakesAllButTheSums(t *testing.T) {
	in := apitest.New(t, 700*time.Millisecond)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	const person = "kind: Customer\nname: person\nspec: {zone: emea, display_name: Erika Mustermann, subscriptions: [{name: main, plan: gold}]}\n"
	apply(t, z, person)
	apply(t, z, "kind: Customer\nname: other\nspec: {zone: emea, subscriptions: [{name: main, plan: gold}]}\n")
	keys := keysAt(z, apitest.Admin)
	for _, c := range []string{"person", "person", "person", "other"} {
		if _, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: c}); err != nil {
			t.Fatal(err)
		}
	}
	hooks := adminv1connect.NewAlertServiceClient(apitest.Client(apitest.Admin), z.Server.URL, faults)
	if _, err := hooks.CreateWebhook(t.Context(), &adminv1.CreateWebhookRequest{Name: "his", Url: "https://hooks.example.com/x", Customer: "person"}); err != nil {
		t.Fatal(err)
	}
	z.Store.Put(model.PrefixAlert+"person/x", []byte(`{"id":"a"}`))
	z.Detail.SetDown(true)
	erase := func(token string) (*adminv1.EraseResponse, error) {
		return customersAt(z, token).Erase(t.Context(), &adminv1.EraseRequest{Customer: "person", Reason: "asked for", RequestId: "r"})
	}
	if _, err := erase(apitest.Viewer); fault.KindOf(err) != fault.Denied {
		t.Errorf("a viewer erases: %v", err)
	}
	first, err := erase(apitest.Admin)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"emea-1", "eu-west-edge-1"}; !slices.Equal(first.Pending, want) { // the edge of this world reports an old table for ever
		t.Errorf("pending %v, want %v", first.Pending, want)
	}
	index := z.Store.Local().Revision().Index
	z.Detail.SetDown(false)
	again, err := erase(apitest.Admin)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Pending, []string{"eu-west-edge-1"}) {
		t.Errorf("pending %v after the node came back, want the edge alone", again.Pending)
	}
	if got := z.Detail.Erased("person"); got < index {
		t.Errorf("detail was erased for index %d, before the tombstone and all else at %d", got, index)
	}
	st, ok := erasure.Verify(z.Signer.Public().(ed25519.PublicKey), again.Statement, again.Signature)
	if !ok || st.Customer != "person" || st.Zone != "emea" || st.Reason != "asked for" || st.By != "admin" || st.Removed.Keys != 3 || st.Removed.Webhooks != 1 || st.Removed.Alerts != 1 ||
		len(st.Removed.Detail) != 1 || st.Removed.Detail[0].Rows != 5 || len(st.Removed.Detail[0].Before) != 2 || st.Removed.RecordSHA256 == "" || len(st.Stays) == 0 {
		t.Errorf("statement %v: %+v", ok, st)
	}
	if _, ok := erasure.Verify(in.Zones["us"].Signer.Public().(ed25519.PublicKey), again.Statement, again.Signature); ok {
		t.Error("another zone's key verifies it")
	}
	if _, ok := erasure.Verify(z.Signer.Public().(ed25519.PublicKey), bytes.Replace(again.Statement, []byte(`"keys": 3`), []byte(`"keys": 4`), 1), again.Signature); ok {
		t.Error("a changed statement verifies")
	}
	for kv := range z.Store.Local().List("") {
		if strings.Contains(string(kv.Value), "Erika") {
			t.Errorf("%s still holds the name of the person: %s", kv.Key, kv.Value)
		}
		if strings.Contains(kv.Key+string(kv.Value), "person") && kv.Key != "gone/person" && kv.Key != "erasures/person" {
			t.Errorf("%s still names the customer: %s", kv.Key, kv.Value)
		}
	}
	if left, err := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "other"}); err != nil || len(left.Keys) != 1 {
		t.Errorf("keys of another customer: %v, %v", left.GetKeys(), err)
	}
	if _, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "person"}); fault.ReasonOf(err) != "CUSTOMER_NOT_FOUND" {
		t.Errorf("a key for an erased customer: %v", err)
	}
	if _, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, person)}); fault.ReasonOf(err) != "CUSTOMER_ERASED" {
		t.Errorf("the name is given again: %v", err)
	}
	if _, err := customersAt(z, apitest.Admin).Erase(t.Context(), &adminv1.EraseRequest{Customer: "nobody", RequestId: "r"}); fault.ReasonOf(err) != "CUSTOMER_NOT_FOUND" {
		t.Errorf("erasing nobody: %v", err)
	}
}

func TestExport_TellsAllButDigests(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sample(t, "10-catalog.yaml"))
	apply(t, z, "kind: Customer\nname: person\nspec: {zone: emea, display_name: Erika Mustermann, subscriptions: [{name: main, plan: gold}]}\n")
	apply(t, z, "kind: Customer\nname: other\nspec: {zone: emea, display_name: Somebody Else, subscriptions: [{name: main, plan: gold}]}\n")
	keys := keysAt(z, apitest.Admin)
	made, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "person"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "other"}); err != nil {
		t.Fatal(err)
	}
	z.Detail.Set(adminapi.Traced{Rows: []*adminv1.TraceRow{{RequestId: "r1", KeyId: made.Id}, {RequestId: "r2"}}})
	export := func(token, customer string) (string, error) {
		stream, err := customersAt(z, token).Export(t.Context(), &adminv1.ExportRequest{Customer: customer})
		if err != nil {
			return "", err
		}
		defer stream.Close()
		var doc strings.Builder
		for stream.Receive() {
			doc.Write(stream.Msg().Chunk)
		}
		return doc.String(), stream.Err()
	}
	text, err := export(apitest.Admin, "person")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Customer struct {
			DisplayName string `json:"display_name"`
		}
		Keys    []struct{ ID, Status string }
		Usage   []any
		Detail  []struct{ Request_id string }
		Missing []string
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if doc.Customer.DisplayName != "Erika Mustermann" || len(doc.Keys) != 1 || doc.Keys[0].ID != made.Id || len(doc.Detail) != 2 || len(doc.Missing) != 0 {
		t.Errorf("export %+v", doc)
	}
	kv, _ := z.Store.Local().Get(model.PrefixKey + made.Id)
	k, _ := model.Decode[model.Key](kv.Key, kv.Value)
	for _, secret := range []string{k.DigestHex, "Somebody Else", "digest"} {
		if strings.Contains(text, secret) {
			t.Errorf("the export holds %q", secret)
		}
	}
	hooks := func(token string) adminv1connect.AlertServiceClient {
		return adminv1connect.NewAlertServiceClient(apitest.Client(token), z.Server.URL, faults)
	}
	if _, err := hooks(apitest.Admin).CreateWebhook(t.Context(), &adminv1.CreateWebhookRequest{Name: "his", Url: "https://hooks.example.com/s/T0KEN?key=T0KEN", Customer: "person"}); err != nil {
		t.Fatal(err)
	}
	if text, err = export(apitest.Admin, "person"); err != nil || !strings.Contains(text, "https://hooks.example.com/s/T0KEN") || strings.Contains(text, "sealed") {
		t.Errorf("the customer's webhook: %v in %s", err, text)
	}
	// What tells a webhook's receiver that it is us may stand in its URL.
	for token, whole := range map[string]bool{apitest.Viewer: false, apitest.Admin: true} {
		got, err := hooks(token).ListWebhooks(t.Context(), &adminv1.ListWebhooksRequest{})
		if err != nil || len(got.Webhooks) != 1 || strings.Contains(got.Webhooks[0].Url, "T0KEN") != whole || !strings.HasPrefix(got.Webhooks[0].Url, "https://hooks.example.com/") {
			t.Errorf("%s lists %v, %v", token, got.GetWebhooks(), err)
		}
	}
	// A customer who is gone is still told what was added to the quotas.
	if _, err := quotasAt(z, apitest.Admin).TopUp(t.Context(), &adminv1.TopUpRequest{Customer: "person", Units: 5, Reason: "for Erika", RequestId: "t1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := customersAt(z, apitest.Admin).Erase(t.Context(), &adminv1.EraseRequest{Customer: "person", Reason: "asked", RequestId: "e1"}); err != nil {
		t.Fatal(err)
	}
	if text, err = export(apitest.Admin, "person"); err != nil || !strings.Contains(text, "for Erika") || strings.Contains(text, "CUSTOMER_NOT_FOUND") || !strings.Contains(text, `"missing": []`) {
		t.Errorf("export of one who is erased: %v, %s", err, text)
	}
	z.Detail.SetDown(true)
	if text, err = export(apitest.Admin, "person"); err != nil || !strings.Contains(text, "detail on node emea-1") {
		t.Errorf("a node does not answer, and the export does not say so: %v", err)
	}
	if _, err := export(apitest.Viewer, "person"); fault.KindOf(err) != fault.Denied {
		t.Errorf("a viewer exports: %v", err)
	}
	if _, err := export(apitest.Admin, "nobody"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("export of nobody: %v", err)
	}
}
