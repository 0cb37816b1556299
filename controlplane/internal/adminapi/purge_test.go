package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

func TestPurge_IsWrittenToTheAPIsZoneAlone(t *testing.T) {
	in := seeded(t, 2*time.Second)
	z := in.Zones["emea"]
	at := func(token string) adminv1connect.CacheServiceClient {
		return adminv1connect.NewCacheServiceClient(apitest.Client(token), z.Server.URL, faults)
	}
	resp, err := at(apitest.Admin).PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{Api: "orders", Tags: []string{"item-7"}, RequestId: "one"})
	if err != nil || resp.GetSeq() != 1 || resp.GetIndex() == 0 {
		t.Fatalf("got %v, %v", resp, err)
	}
	host := stored[model.API](t, in.Catalog, model.APIKey("emea", "orders")).Hosts[0]
	if _, err := at(apitest.Admin).PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{Api: "orders", Soft: true,
		Urls: []string{"https://" + strings.ToUpper(host) + ":8443/v1/a%20b?q=1", "https://" + host}}); err != nil {
		t.Fatal(err)
	}
	p := stored[model.Purges](t, z.Store, model.PrefixPurge+"orders")
	want := []model.Purge{{Seq: 1, What: table.PurgeTag("item-7")}, {Seq: 2, What: table.PurgeURL(host, "/v1/a b", "q=1"), Soft: true}, {Seq: 3, What: table.PurgeURL(host, "/", ""), Soft: true}}
	if p.API != "orders" || p.Seq != 3 || len(p.Of) != len(want) {
		t.Fatalf("it rests as %+v", p)
	}
	for i, o := range p.Of {
		if want[i].At = o.At; o != want[i] || o.At.IsZero() {
			t.Errorf("purge %d rests as %+v, want %+v", i, o, want[i])
		}
	}
	if strings.Contains(in.Catalog.Dump()+in.Zones["us"].Store.Dump(), "purges/") {
		t.Error("it rests outside of its zone")
	}
	if a := stored[model.Audit](t, z.Store, model.KeyAudit); a.Call != "purge" || a.Operator == "" {
		t.Errorf("on record as %+v", a)
	}
	for _, c := range []struct {
		token, reason string
		req           *adminv1.PurgeCacheRequest
	}{
		{apitest.Viewer, "ROLE_INSUFFICIENT", &adminv1.PurgeCacheRequest{Api: "orders", All: true}},
		{apitest.Admin, "API_NOT_FOUND", &adminv1.PurgeCacheRequest{Api: "nothing", All: true}},
		{apitest.Admin, "PURGE_INVALID", &adminv1.PurgeCacheRequest{Api: "orders"}},
		{apitest.Admin, "PURGE_INVALID", &adminv1.PurgeCacheRequest{Api: "orders", All: true, Tags: []string{"x"}}},
		{apitest.Admin, "TAG_INVALID", &adminv1.PurgeCacheRequest{Api: "orders", Tags: []string{"a b"}}},
		{apitest.Admin, "URL_INVALID", &adminv1.PurgeCacheRequest{Api: "orders", Urls: []string{"/v1/x"}}},
		{apitest.Admin, "HOST_UNKNOWN", &adminv1.PurgeCacheRequest{Api: "orders", Urls: []string{"https://elsewhere.test/"}}},
	} {
		if _, err := at(c.token).PurgeCache(t.Context(), c.req); fault.ReasonOf(err) != c.reason {
			t.Errorf("%v: got %v, want %s", c.req, err, c.reason)
		}
	}
	if now := stored[model.Purges](t, z.Store, model.PrefixPurge+"orders"); now.Seq != 3 {
		t.Errorf("what was refused is written: %+v", now)
	}
}
