package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// writeJSON writes sandbox.json, whole or not at all: its presence means that everything is ready.
func (s *sandbox) writeJSON() error {
	type object = map[string]any
	admins, edges, upstreams, controls, stores, apis := []object{}, []object{}, []object{}, []object{}, []object{}, []object{}
	if s.keys == nil {
		s.keys = []keyInfo{} // a list without entries is [], never null
	}
	for i, c := range controlSpecs {
		admins = append(admins, object{"name": c.name, "region": c.region, "zone": c.zone, "url": "https://" + s.layout.admin(i)})
		controls = append(controls, object{"name": c.name, "region": c.region, "zone": c.zone, "pid": s.children[c.name].pid(), "dir": s.rel(c.name)})
	}
	for i, e := range edgeSpecs {
		edges = append(edges, object{"name": e.name, "region": e.region, "zone": e.zone, "https": s.layout.edgeHTTPS(i), "http": s.layout.edgeHTTP(i),
			"h3": s.layout.edgeHTTPS(i), "dns": s.layout.edgeDNS(i), "admin": "http://" + s.layout.edgeAdmin(i), "pid": s.children[e.name].pid(), "dir": s.rel(e.name)})
		if s.cfg.Upstream == "" {
			name := "orders@" + e.region
			upstreams = append(upstreams, object{"name": name, "region": e.region, "api": "orders", "url": "http://" + s.layout.upstream(i), "pid": s.children[name].pid()})
		}
	}
	if s.cfg.Store == "etcd" {
		for i, m := range storeSpecs {
			stores = append(stores, object{"name": m.name, "region": m.region, "cluster": m.cluster, "url": "http://" + s.layout.etcd(i), "pid": s.children[m.name].pid(), "dir": s.rel(m.name)})
		}
	}
	for _, z := range zones {
		policy := map[string]string{"emea": "gdpr-emea", "us": "us"}[z.name]
		for _, api := range []string{"orders", "reports"} {
			apis = append(apis, object{"name": api, "zone": z.name, "host": api + "." + z.name + ".example.test", "policy": policy})
		}
	}
	data, err := json.MarshalIndent(object{
		"admin": admins, "admin_token_file": s.rel("admin.token"), "ca_file": s.rel(s.clientRoots()), "acme": s.acmeFlags(), "acme_authority": s.acmeURL(),
		"edges": edges, "upstreams": upstreams, "controls": controls, "stores": stores, "apis": apis, "keys": s.keys,
		"control_url": "http://" + s.layout.control(),
	}, "", "  ")
	if err != nil {
		return err
	}
	tmp := s.path("sandbox.json.tmp")
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.path("sandbox.json"))
}

// rel gives a path as the contract shows it: relative to where the sandbox was started, when it lies below.
func (s *sandbox) rel(parts ...string) string {
	full := s.path(parts...)
	if wd, err := os.Getwd(); err == nil {
		if r, err := filepath.Rel(wd, full); err == nil && !strings.HasPrefix(r, "..") {
			return r
		}
	}
	return full
}

func (s *sandbox) printTable(w io.Writer) {
	with := ""
	if s.cfg.Store == "etcd" {
		with = fmt.Sprintf(", %d members of three etcds", len(storeSpecs))
	}
	fmt.Fprintf(w, "\nBailiwick sandbox: 2 zones, 6 control nodes, 4 edges%s. All on loopback; Ctrl-C ends it.\n\n", with)
	fmt.Fprintf(w, "  %-18s %-11s %-5s %-28s %s\n", "EDGE", "REGION", "ZONE", "HTTPS", "ADMIN")
	for i, e := range edgeSpecs {
		fmt.Fprintf(w, "  %-18s %-11s %-5s %-28s %s\n", e.name, e.region, e.zone, "https://"+s.layout.edgeHTTPS(i), "http://"+s.layout.edgeAdmin(i))
	}
	fmt.Fprintf(w, "\n  %-18s %-11s %-5s %s\n", "CONTROL NODE", "REGION", "ZONE", "ADMIN API")
	for i, c := range controlSpecs {
		fmt.Fprintf(w, "  %-18s %-11s %-5s https://%s\n", c.name, c.region, c.zone, s.layout.admin(i))
	}
	for _, k := range s.keys {
		if k.Customer != "acme" {
			continue
		}
		host := "orders.emea.example.test"
		port := s.layout.edgeHTTPS(0)[strings.LastIndex(s.layout.edgeHTTPS(0), ":"):]
		fmt.Fprintf(w, "\nTry (in another terminal, after `. %s`):\n\n", s.rel("env.sh"))
		fmt.Fprintf(w, "  curl --cacert %s --resolve %s%s:127.0.0.1 -H 'X-API-Key: %s' -i https://%s%s/v1/orders\n", s.rel(s.clientRoots()), host, port, k.Key, host, port)
		if s.cfg.ACME {
			fmt.Fprintf(w, "  curl --cacert %s %s/__orders    # the orders that the ACME authority has taken, by host\n", s.rel(authorityCA), s.acmeURL())
		}
		fmt.Fprintf(w, "  dig @127.0.0.1 -p %d %s HTTPS +short\n", s.layout.base+53, host)
		fmt.Fprintf(w, "  curl -X POST http://%s/v1/kill/orders@eu-west    # then the first command again: Bailiwick-Served: eu-central\n", s.layout.control())
		fmt.Fprintf(w, "  bin/bailiwick usage --customer acme --since 1h\n\n")
	}
}
