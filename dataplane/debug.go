package dataplane

import (
	"encoding/json"
	"net/http"

	"bailiwick/dataplane/internal/profile"
)

// debug adds what only a person on this machine may see. The address of the admin server may be another than loopback, for
// metrics; this is answered to loopback all the same, and to no page of a browser that was led here by a name.
func (e *Edge) debug(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/config", func(w http.ResponseWriter, r *http.Request) {
		if !profile.Local(r) {
			http.Error(w, "Only this machine is told, at a loopback address.", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.Encode(e.shown())
	})
}

// shown is the configuration in force. Each field is named here: one that is new is not shown before somebody has asked
// whether it may be. Contents of files, tokens, the ACME account's contact and what the zone's secrets are, are not.
func (e *Edge) shown() map[string]any {
	c := e.cfg
	out := map[string]any{"name": c.Name, "region": e.self.Region, "zone": e.self.Zone, "version": c.Version, "dir": c.Dir,
		"https": c.HTTPS, "http": c.HTTP, "relay": c.Relay, "relay_advertise": c.RelayAdvertise, "admin": c.Admin, "public": c.Public, "public_https_port": c.publicPort(),
		"dns":        map[string]any{"listen": c.DNS.Listen, "domains": c.DNS.Domains, "caa": c.DNS.CAA, "ttl": c.DNS.TTL.String(), "negative_ttl": c.DNS.NegativeTTL.String(), "ramp": c.DNS.Ramp.String()},
		"quota_wait": c.QuotaWait.String(), "max_in_flight": c.MaxInFlight, "detail_bytes": c.DetailBytes, "relay_rows_bytes": c.RelayRowsBytes, "relay_rows_keep": c.RelayRowsKeep.String(),
		"on_spool_error": c.OnSpoolError, "cache_bytes": c.CacheBytes, "upstream_allow": c.UpstreamAllow, "allow_loopback_upstreams": c.AllowLoopbackUpstreams,
		"upstream_refresh": c.UpstreamRefresh.String(), "acme_directory": c.ACME.Directory, "takeover": c.Takeover, "pprof": c.Pprof,
		"traces": map[string]any{"endpoint": c.Traces.Endpoint, "ratio": c.Traces.Ratio, "per_second": c.Traces.PerSecond}}
	if t := e.tables.Load(); t != nil {
		out["table"] = map[string]any{"catalog": t.Catalog().String(), "zone": t.Zone().String(), "hosts": len(t.Hosts()), "quarantined": len(t.Quarantined())}
	}
	return out
}
