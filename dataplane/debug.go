package dataplane

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/profile"
)

// debug adds what only a person on this machine may see. The address of the admin server may be another than loopback, for
// metrics; this is answered to loopback all the same, and to no page of a browser that was led here by a name.
func (e *Edge) debug(mux *http.ServeMux) {
	tell := func(path string, what func() any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if !profile.Local(r) {
				http.Error(w, "Only this machine is told, at a loopback address.", http.StatusForbidden)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			enc := json.NewEncoder(w)
			enc.SetIndent("", "  ")
			enc.Encode(what())
		})
	}
	tell("/debug/config", func() any { return e.shown() })
	tell("/debug/upstreams", func() any { return upstreamsShown(e.monitor.Reports()) })
}

// upstreamShown is an upstream for people.
type upstreamShown struct {
	API      string `json:"api"` // zone/name
	Upstream string `json:"upstream"`
	State    string `json:"state"`
	SetAside bool   `json:"set_aside,omitempty"` // it fails more than the others
	Error    string `json:"error,omitempty"`     // why its last probe was bad
	GoodFor  string `json:"good_for,omitempty"`  // ejected: since when its probes are good without a break
	Busy     int64  `json:"requests_in_flight"`
	Waiting  int64  `json:"requests_waiting"` // for a place at any upstream of the API
	Latency  string `json:"latency"`          // of late, to an answer's head
}

func upstreamsShown(reports []failover.Report) []upstreamShown {
	out := make([]upstreamShown, 0, len(reports))
	for _, r := range reports {
		u := upstreamShown{API: r.Zone + "/" + r.API, Upstream: r.Target, State: r.Phase, SetAside: r.Outlier, Error: r.Why, Busy: r.Busy, Waiting: r.Waiting,
			Latency: r.Latency.Round(time.Microsecond).String()}
		if r.GoodFor > 0 {
			u.GoodFor = r.GoodFor.Round(time.Millisecond).String()
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b upstreamShown) int {
		return cmp.Or(cmp.Compare(a.API, b.API), cmp.Compare(a.Upstream, b.Upstream))
	})
	return out
}

// shown is the configuration in force. Each field is named here: one that is new is not shown before somebody has asked
// whether it may be (TestDebug_EachFieldIsShownOrKept). Contents of files, tokens, the ACME account's contact and what the zone's
// secrets are, are not.
func (e *Edge) shown() map[string]any {
	c := e.cfg
	out := map[string]any{"name": c.Name, "region": e.self.Region, "zone": e.self.Zone, "version": c.Version, "dir": c.Dir,
		"https": c.HTTPS, "http": c.HTTP, "relay": c.Relay, "relay_advertise": c.RelayAdvertise, "admin": c.Admin, "public": c.Public, "public_https_port": c.publicPort(),
		"dns":        map[string]any{"listen": c.DNS.Listen, "domains": c.DNS.Domains, "caa": c.DNS.CAA, "ttl": c.DNS.TTL.String(), "negative_ttl": c.DNS.NegativeTTL.String(), "ramp": c.DNS.Ramp.String()},
		"quota_wait": c.QuotaWait.String(), "busy_poll": c.BusyPoll.String(), "max_in_flight": c.MaxInFlight, "max_connections": c.MaxConnections, "max_connections_per_address": c.MaxPerAddress, "max_streams": c.MaxStreams,
		"min_upload_rate": c.UploadRate, "detail_bytes": c.DetailBytes, "relay_rows_bytes": c.RelayRowsBytes, "relay_rows_keep": c.RelayRowsKeep.String(),
		"on_spool_error": c.OnSpoolError, "access_log": c.AccessLog, "access_log_sample": c.AccessLogSample, "access_log_bytes": c.AccessLogBytes, "cache_bytes": c.CacheBytes,
		"upstream_allow": c.UpstreamAllow, "upstream_allow_foreign": c.UpstreamAllowForeign, "allow_loopback_upstreams": c.AllowLoopbackUpstreams, "upstream_certs": c.UpstreamCerts,
		"upstream_refresh": c.UpstreamRefresh.String(), "upstream_drain": c.UpstreamDrain.String(), "acme_directory": c.ACME.Directory, "takeover": c.Takeover, "takeover_linger": c.Linger.String(), "pprof": c.Pprof,
		"traces": map[string]any{"endpoint": c.Traces.Endpoint, "ratio": c.Traces.Ratio, "per_second": c.Traces.PerSecond}}
	if t := e.tables.Load(); t != nil {
		out["table"] = map[string]any{"catalog": t.Catalog().String(), "zone": t.Zone().String(), "hosts": len(t.Hosts()), "quarantined": len(t.Quarantined())}
	}
	return out
}
