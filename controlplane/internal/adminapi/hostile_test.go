package adminapi_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// poison is a document that must be refused. broken ones are refused by the reader of manifests, the others by the API.
type poison struct {
	class string
	text  string
	name  string // as the refusal must tell it; "": it has none, the line must be told
}

// lookalikes are letters that a person takes for the ones before them.
var lookalikes = [][2]string{{"a", "а"}, {"e", "е"}, {"o", "о"}, {"p", "р"}, {"c", "с"}, {"i", "і"}, {"s", "ѕ"}, {"r", "r\u200b"}, {"n", "n\u202e"}, {"l", "ｌ"}}

func disguise(r *rand.Rand, s string) string {
	for {
		l := lookalikes[r.IntN(len(lookalikes))]
		if strings.Contains(s, l[0]) {
			return strings.Replace(s, l[0], l[1], 1)
		}
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// evil makes one poisonous document called name.
func evil(r *rand.Rand, name string) poison {
	doc := func(class, kind, spec string, args ...any) poison {
		return poison{class, fmt.Sprintf("kind: %s\nname: %s\nspec: %s\n", kind, name, fmt.Sprintf(spec, args...)), name}
	}
	api := func(class, spec string, args ...any) poison { return doc(class, "API", spec, args...) }
	n := 1 + r.IntN(1000)
	switch r.IntN(27) {
	case 0:
		return poison{"blank name", fmt.Sprintf("kind: Product\nname: %q\nspec: {apis: [orders]}\n", pick(r, "", " ", "\t", "\u00a0\u2003")), ""}
	case 1:
		return poison{"no name", "kind: Product\nspec: {apis: [orders]}\n", ""}
	case 2:
		one := fmt.Sprintf("kind: Product\nname: %s\nspec: {apis: [orders]}\n", name)
		return poison{"twice in one request", one + "---\n" + one, name}
	case 3:
		return poison{"unknown kind", fmt.Sprintf("kind: %s\nname: %s\nspec: {}\n", pick(r, "Prodcut", "product", disguise(r, "Policy"), "\"\"", "[Product]", "{Product: 1}"), name), ""}
	case 4:
		return doc("unknown field", "Product", "{apis: [orders], %s: 1}", pick(r, "api", "labels", disguise(r, "apis"), "Apis", "__proto__"))
	case 5:
		return doc("field twice", "Product", "{apis: [orders], apis: [reports]}")
	case 6:
		return doc("unknown enum", "Plan", "{products: [commerce], quota: {units: 5, %s}}", pick(r, "mode: lenient", "period: fortnight", "mode: STRICT", disguise(r, "mode: strict")))
	case 7:
		return doc("unknown status", pick(r, "Customer"), "{zone: emea, status: %s}", pick(r, "frozen", "Active", disguise(r, "active"), "\"\\u0000\""))
	case 8:
		depth := 50 + r.IntN(20_000)
		open, shut := pick(r, "{apis: ", "["), ""
		if shut = "}"; open == "[" {
			shut = "]"
		}
		return doc("deep nesting", "Product", "{apis: %s1%s}", strings.Repeat(open, depth), strings.Repeat(shut, depth))
	case 9:
		return doc("oversize", "API", "{zone: emea, hosts: [%s.test], openapi: %q}", name, strings.Repeat("x", 65_537+r.IntN(100_000)))
	case 10:
		return poison{"look-alike name", fmt.Sprintf("kind: Product\nname: %q\nspec: {apis: [orders]}\n", disguise(r, "scarecrow-paneli")), ""}
	case 11:
		return doc("look-alike reference", "Product", "{apis: [%q]}", disguise(r, "orders"))
	case 12:
		return doc("yaml bomb", "Product", "{apis: &a [x, x, x, x, x, x, x, x], summary: *a}")
	case 13:
		return poison{"yaml bomb", fmt.Sprintf("kind: Product\nname: %s\nspec:\n  apis: &b [&a [l, l, l, l], *a, *a, *a]\n  summary: {<<: *b}\n", name), name}
	case 14:
		return api("dangling reference", "{zone: emea, hosts: [%s.test], %s}", name, pick(r, "policy: nobody", "policy: usa", "upstreams: [{region: atlantis, url: \"http://a:1\"}]", "upstreams: [{region: eu-north, url: \"http://a:1\"}]"))
	case 15:
		return doc("dangling reference", "Plan", "{products: [%s]}", pick(r, "nothing", "orders", "\"\"", "commerce, commerce"))
	case 16:
		return doc("dangling reference", "Customer", "{zone: emea, subscriptions: [{plan: %s}]}", pick(r, "platinum", "gold}, {plan: gold", "\"\"", disguise(r, "gold")))
	case 17:
		return doc("wrong zone", pick(r, "Customer", "Policy", "Drain"), "{zone: %s}", pick(r, "atlantis", "EMEA", disguise(r, "emea"), "us-"))
	case 18:
		return api("a host of others", "{zone: emea, hosts: [%s]}", pick(r, "orders.emea.example.test", "orders.us.example.test", "10.0.0.1", "\"*.test\"", "Upper.test", "a..b", "-a.test", "\"a b\"", disguise(r, "orders.test"), "a:443", name+".test, "+name+".test"))
	case 19:
		return doc("number", "Plan", "{products: [commerce], quota: {units: %s}}", pick(r, "-1", "99999999999999999999", ".nan", "1e309", "0x10", "1.5", "many", "true", "0", "null", "\"5\"", "1000000000000001"))
	case 20:
		return api("duration", "{zone: emea, hosts: [%s.test], routes: [{name: all, timeout: %s}]}", name, pick(r, "5", "-1s", "300000h", "9999999h", "soon", "1e9s", "\"\""))
	case 21:
		return api("url", "{zone: emea, hosts: [%s.test], upstreams: [{region: eu-west, url: %q}]}", name, pick(r, "ftp://a", "http://user:pw@a", "http://a/path", "javascript:alert(1)", "http://", "//a", "http://a?x=1", "http://a#f", "http://a b", "file:///etc/passwd"))
	case 22:
		return api("route", "{zone: emea, hosts: [%s.test], routes: [%s]}", name, pick(r, "{name: a, path_prefix: /a/../b}", "{name: a, path_prefix: b}", "{name: a, path_prefix: \"/a?b\"}", "{name: a}, {name: a}", "{name: a}, {name: b}", "{name: A}", "{name: a, methods: [get]}", "{name: a, methods: [\"GET POST\"]}", "{name: a, max_request_bytes: -1}", "{name: a, path_prefix: //}"))
	case 23:
		return doc("policy", "Policy", "{zone: emea, pairs: [%s]}", pick(r, "{from: eu-west, to: eu-west, basis: gdpr}", "{from: eu-west, to: atlantis, basis: gdpr}", "{from: us-east, to: eu-west, basis: gdpr}", "{from: eu-west, to: us-east, basis: nothing}", "{from: eu-west}", "{from: eu-west, to: eu-central, basis: gdpr, status: ajar}", "{from: eu-west, to: eu-central, basis: gdpr, review_by: soon}"))
	case 24:
		return poison{"stale etag", fmt.Sprintf("kind: Plan\nname: gold\netag: %q\nspec: {products: [commerce]}\n", pick(r, strconv.Itoa(n+1_000_000), "0", "x", "-1")), "gold"}
	case 25:
		return poison{"for ever", pick(r, "kind: Region\nname: eu-west\nspec: {zone: us, country: IE, jurisdiction: EEA}\n", "kind: Region\nname: eu-west\nspec: {zone: emea, country: US, jurisdiction: US}\n",
			"kind: Zone\nname: emea\nspec: {jurisdiction: US}\n", "kind: Zone\nname: emea\nspec: {signing_key: AAAA}\n", "kind: Zone\nname: emea\nspec: {signing_key: \"%%%\"}\n", "kind: Zone\nname: atlantis\nspec: {jurisdiction: EEA}\n", "kind: Policy\nname: gdpr-emea\nspec: {zone: us}\n"), ""}
	}
	return doc("type", "Product", "%s", pick(r, "null", "5", "[a]", "{apis: orders}", "{apis: {a: b}}", "{apis: [[a]]}", "{apis: [null]}", "{apis: [orders], summary: [a]}", "{apis: [orders], summary: true}", "{apis: [orders], summary: !!binary aGk=, extra: 1}", "{? [a] : b}", "{apis: []}", "{apis: [\"\"]}", "\"\\xff\""))
}

var atLine = regexp.MustCompile(`hostile\.yaml:\d+`)

// A thousand configurations with one poisonous document each, among good ones: nothing of any of them is written, and each
// refusal says which document it is about. BAILIWICK_SEED repeats a run.
func TestHostile_OnePoisonSpoilsAllAndIsNamed(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BAILIWICK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d: BAILIWICK_SEED=%d repeats it", seed, seed)
	r := rand.New(rand.NewPCG(seed, 1))
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	res := resourcesAt(z, apitest.Admin)
	dump := func() string { return in.Catalog.Dump() + "\n" + z.Store.Dump() }
	before := dump()
	refused := map[string]int{}
	for i := range 1000 {
		p := evil(r, fmt.Sprintf("poison-%d", i))
		docs := []string{p.text}
		for j := range r.IntN(4) { // good ones, which would be new
			good := fmt.Sprintf("kind: Product\nname: good-%d-%d\nspec: {apis: [orders]}\n", i, j)
			if r.IntN(2) == 0 {
				docs = append(docs, good)
			} else {
				docs = append([]string{good}, docs...)
			}
		}
		text := strings.Join(docs, "---\n")
		parsed, err := manifest.Parse("hostile.yaml", []byte(text))
		reached := err == nil // the API
		if reached {
			req := &adminv1.ApplyRequest{}
			for _, d := range parsed {
				req.Resources = append(req.Resources, d.Resource)
			}
			_, err = res.Apply(t.Context(), req)
		} else if !atLine.MatchString(err.Error()) {
			t.Errorf("%s: the refusal names no line: %v", p.class, err)
		}
		f, ok := errors.AsType[*fault.Error](err)
		switch {
		case err == nil:
			t.Fatalf("%s was taken:\n%.2000s", p.class, text)
		case !ok || f.Reason == "" || f.Kind == fault.Internal || f.Kind == fault.Unavailable:
			t.Errorf("%s: %v is no refusal with a reason (%.300s)", p.class, err, text)
		case len(err.Error()) > 16<<10:
			t.Errorf("%s: the refusal holds %d bytes", p.class, len(err.Error()))
		case reached && !strings.HasPrefix(f.Field, "resources["):
			t.Errorf("%s: %v is at %q, want the document (%.300s)", p.class, err, f.Field, text)
		case p.name != "" && !strings.Contains(err.Error(), p.name) && !atLine.MatchString(err.Error()) && !strings.HasPrefix(f.Field, "resources["):
			t.Errorf("%s: %v does not name %s", p.class, err, p.name)
		}
		if reached && ok { // the field leads to the poison, not to a good one
			at, _ := strconv.Atoi(strings.TrimRight(strings.SplitN(strings.TrimPrefix(f.Field, "resources["), "]", 2)[0], "]"))
			if at < len(parsed) && strings.HasPrefix(parsed[at].Resource.GetName(), "good-") {
				t.Errorf("%s: the refusal %v is at %s, which is a good document", p.class, err, f.Field)
			}
		}
		refused[p.class]++
		if now := dump(); now != before {
			t.Fatalf("%s changed the state:\n%.2000s", p.class, text)
		}
	}
	if len(refused) < 20 {
		t.Errorf("only %d classes were tried: %v", len(refused), refused)
	}
}

// Who is not an operator of this zone changes nothing, whatever he says he is.
func TestHostile_ForgedIdentities(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	z.Store.Put("operators/"+strings.Repeat("0", 64), model.Encode(model.Operator{Name: "ghost", Role: "admin"}))
	before := in.Catalog.Dump() + z.Store.Dump()
	body := `{"resources":[{"name":"p","product":{"apis":["orders"]}}]}`
	none := "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290Iiwicm9sZSI6ImFkbWluIn0."
	for name, header := range map[string]string{"nobody": "", "unknown": "Bearer nonsense", "the hash of a token": "Bearer " + strings.Repeat("0", 64), "an unsigned token": "Bearer " + none,
		"another scheme": "Basic " + apitest.Admin, "two": "Bearer " + apitest.Admin + " " + apitest.Admin, "an empty one": "Bearer ", "a newline": "Bearer x\ty"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, z.Server.URL+"/bailiwick.admin.v1.ResourceService/Apply", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Forwarded-User", "root")
		if header != "" {
			req.Header.Set("Authorization", header)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s, want 401", name, resp.Status)
		}
	}
	for name, bad := range map[string]string{"deep": strings.Repeat(`{"resources":[`, 20_000), "an unknown field": `{"resource":[]}`, "an array": `[]`, "nothing": ``, "two": body + body, "noise": "\x00\xff"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, z.Server.URL+"/bailiwick.admin.v1.ResourceService/Apply", bytes.NewReader([]byte(bad)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+apitest.Admin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s, want 400", name, resp.Status)
		}
	}
	if in.Catalog.Dump()+z.Store.Dump() != before {
		t.Error("somebody who is nobody changed the state")
	}
}
