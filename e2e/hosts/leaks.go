package main

import (
	"bailiwick/e2e/mutants/overlay"
)

// leak is a build that deliberately lets something cross, and how the lab must find it. Each is made by an overlay, as
// the bugs of e2e/mutants are: its text must stand in its file exactly once.
type leak struct {
	name     string
	crosses  string // what, in one line
	edits    []overlay.Edit
	programs []string // that are built from it
	// abroad adds an upstream in the other zone's first region to the first zone's API.
	abroad bool
	want   []string // regular expressions; each must match a finding
}

const (
	pathFile     = "dataplane/internal/proxy/path.go"
	fastFile     = "dataplane/internal/proxy/fast.go"
	upstreamFile = "dataplane/internal/proxy/upstream.go"
	gateFile     = "dataplane/internal/gate/caller.go"
	controlFile  = "dataplane/control.go"
	metricsFile  = "shared/telemetry/admin.go"
	recordsFile  = "regions/answer/records.go"
	setFile      = "regions/set.go"
	judgeFile    = "controlplane/internal/adminapi/judge.go"
	keysFile     = "controlplane/internal/adminapi/keys.go"
	usageFile    = "controlplane/usage.go"
)

var (
	edgeProgram    = []string{"./dataplane/cmd/bailiwick-edge"}
	controlProgram = []string{"./controlplane/cmd/bailiwick-control"}
	bothPrograms   = []string{"./controlplane/cmd/bailiwick-control", "./dataplane/cmd/bailiwick-edge"}
)

// The first of each zone's control nodes, edges and upstreams, as the plan has them.
var (
	foreignControl = site{zone: 1, kind: control}
	foreignEdge    = site{zone: 1, kind: edge}
)

// Common requests go the way of all others too: a leak there needs one place.
var uncommon = overlay.Edit{File: fastFile, Old: "	if !r.Plain || ", New: "	if true || !r.Plain || "}

// What a catalog entry with a customer in it looks like: written with each new key.
func mirrored(value string) []overlay.Edit {
	return []overlay.Edit{
		{File: keysFile, Old: "		key := model.Key{Kind: kind, ID: keyID, DigestHex:",
			New: "		if _, err := s.commit(ctx, s.Catalog, group.Txn{RequestID: id + \"/mirror\", Ops: []group.Op{{Key: \"mirror/\" + keyID[:4], Value: []byte(" + value + ")}}}); err != nil {\n\t\t\treturn nil, err\n\t\t}\n\t\tkey := model.Key{Kind: kind, ID: keyID, DigestHex:"},
		{File: keysFile, Old: "	\"crypto/rand\"\n", New: "	\"crypto/rand\"\n\t\"fmt\"\n"},
		{File: keysFile, Old: "const (\n\tkeyActive", New: "var _ = fmt.Sprint\n\nconst (\n\tkeyActive"},
	}
}

var leaks = []leak{
	{name: "header-to-foreign-control", crosses: "an edge tells a control node of another zone a header of a request",
		edits: []overlay.Edit{{File: pathFile, Old: "	x.introduce(host)\n", New: `	x.introduce(host)
	go func(note string) {
		if c, err := net.DialTimeout("tcp", "` + foreignControl.at(adminPort) + `", time.Second); err == nil {
			c.Write([]byte("GET /?note=" + note + " HTTP/1.1\r\nHost: x\r\n\r\n"))
			c.Close()
		}
	}(x.r.Header.Get("X-Note"))
`}, uncommon},
		programs: edgeProgram, want: []string{`^counter emea_edge__us_control: `, `^emea's request header as raw in the wire of us-1`}},
	{name: "pairs-without-zone", crosses: "a relay to a foreign region, permitted by the one rule and so by both ends",
		edits: []overlay.Edit{{File: setFile, Old: "a.Zone != p.Zone || b.Zone != p.Zone ||", New: "a.Zone != p.Zone ||"},
			{File: judgeFile, Old: "		case d.change.Action != unchanged && !slices.ContainsFunc(policy.Pairs,", New: "		case false && !slices.ContainsFunc(policy.Pairs,"}},
		programs: bothPrograms, abroad: true,
		want: []string{`^counter emea_edge__us_edge: `, `^emea's request body as raw in the wire of us-east-edge-1`}},
	{name: "upstream-of-another-region", crosses: "an edge goes to its pair's upstream without that region's edge",
		edits: []overlay.Edit{{File: upstreamFile, Old: "		c, err := u.cfg.Dialer.Dial(ctx, at, addr)\n", New: `		if addr == "` + site{kind: upstream, number: 0}.at(upstreamPort) + `" {
			if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", "` + site{kind: upstream, number: 1}.at(upstreamPort) + `"); err == nil {
				c.Close()
			}
		}
		c, err := u.cfg.Dialer.Dial(ctx, at, addr)
`}},
		programs: edgeProgram, want: []string{`^counter eu-west_edge__eu-central_upstream: `}},
	{name: "usage-shipped-abroad", crosses: "an edge brings usage to another zone's control node",
		edits:    []overlay.Edit{{File: controlFile, Old: "	return append(own, others...)\n", New: "	return append([]string{\"" + foreignControl.at(peerPort) + "\"}, append(own, others...)...)\n"}},
		programs: edgeProgram, want: []string{`^counter emea_edge__us_control: `}},
	{name: "customer-in-the-catalog", crosses: "a change of the zone store is mirrored into the catalog",
		edits: mirrored("customer.Name"), programs: controlProgram,
		want: []string{`^emea's customer name as .*raw in .*disks/us-1/`, `^emea's customer name as raw in the wire of us-\d, .* opened`}},
	{name: "hash-in-the-catalog", crosses: "the same, as a hash in hexadecimal",
		edits: mirrored("fmt.Sprintf(\"%x\", sha256.Sum256([]byte(customer.Name)))"), programs: controlProgram,
		want: []string{`^emea's customer name as .*SHA-256 in hex in .*disks/us-1/`}},
	{name: "sums-with-customers", crosses: "sums that another zone asks for name the customers",
		edits: []overlay.Edit{{File: usageFile, Old: "	return adminapi.TotalsProto(totals), nil\n}\n\n// AllTotals", New: `	for kv := range c.store.Local().List(model.PrefixCustomer) {
		for i := range totals.Rows {
			totals.Rows[i].Product += strings.TrimPrefix(kv.Key, model.PrefixCustomer)
		}
	}
	return adminapi.TotalsProto(totals), nil
}

// AllTotals`}},
		programs: controlProgram, want: []string{`^emea's customer name as raw in .*disks/us-operator/screen`, `^emea's customer name as .* in the wire of us-\d, .* opened`}},
	{name: "key-echoed", crosses: "the answer to a foreign key repeats it",
		edits:    []overlay.Edit{{File: gateFile, Old: "\"The key belongs to another zone; send the request to one of the named hosts.\")", New: "\"The key \"+c.text+\" belongs to another zone; send the request to one of the named hosts.\")"}},
		programs: edgeProgram, want: []string{`^emea's stray key as raw in the answer of us-`}},
	{name: "key-logged", crosses: "an edge logs a foreign key",
		edits:    []overlay.Edit{{File: gateFile, Old: "		// The hint is untrusted text: it picks a directory row and nothing else.\n", New: "		println(\"a key of another zone: \" + c.text)\n"}},
		programs: edgeProgram, want: []string{`^emea's stray key's secret as raw in .*disks/us-.*-edge-1/log`}},
	{name: "query-in-a-metric", crosses: "a metric has the base64 of a query in its label, for whoever scrapes it",
		edits: []overlay.Edit{
			{File: metricsFile, Old: "	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: reg})\n",
				New: `	inner := promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: reg})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept-Encoding") // nothing can be appended to a compressed page
		inner.ServeHTTP(w, r)
		fmt.Fprintf(w, "bailiwick_last_query{query=%q} 1\n", os.Getenv("LAST_QUERY"))
	})
`},
			{File: metricsFile, Old: "	\"net/http\"\n", New: "	\"net/http\"\n\t\"os\"\n"},
			{File: pathFile, Old: "	x.introduce(host)\n", New: "	x.introduce(host)\n\tos.Setenv(\"LAST_QUERY\", base64.StdEncoding.EncodeToString([]byte(x.r.URL.RawQuery)))\n"},
			uncommon,
			{File: pathFile, Old: "	\"errors\"\n", New: "	\"encoding/base64\"\n\t\"errors\"\n\t\"os\"\n"},
		},
		programs: edgeProgram, want: []string{`^emea's query as base64 in .*disks/eu-.*/page-`}},
	{name: "dns-names-another-region", crosses: "DNS answers lead clients to another zone's edge",
		edits: []overlay.Edit{{File: recordsFile, Old: "	var out []netip.Addr\n	near, _ := c.turn(spin)",
			New: "	out := []netip.Addr{netip.MustParseAddr(\"" + foreignEdge.address().String() + "\")}\n	near, _ := c.turn(spin)"}},
		programs: edgeProgram, want: []string{`^DNS at eu-west-edge-1 names ` + foreignEdge.address().String()}},
}
