package model_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

// catalog is what rests under each prefix of the catalog group, which every control node of every zone holds.
var catalog = map[string]any{
	"PrefixZone": model.Zone{}, "PrefixRegion": model.Region{}, "PrefixBasis": model.LegalBasis{}, "PrefixPolicy": model.Policy{},
	"PrefixAPI": model.API{}, "PrefixProduct": model.Product{}, "PrefixPlan": model.Plan{}, "PrefixNode": model.Node{},
	"PrefixGone": model.Gone{}, // in the catalog, of APIs and regions
	"KeyAudit":   model.Audit{}, "PrefixRevision": model.Revision{},
	"PrefixSwitch": model.Switch{}, "PrefixRollout": model.Rollout{}, "KeyRollout": model.Rollout{}, "PrefixHeld": model.Held{}, "PrefixWord": model.RolloutWord{}, "PrefixLevel": model.NodeLevel{}, "PrefixCluster": model.Cluster{}, "PrefixRelease": model.Release{},
}

// crosses names each field of text or bytes of the catalog, with the reason why it may be in every zone. There is no
// field here in which a person of a zone could be named: nothing of customers, keys, usage or operators.
var crosses = map[string]string{
	"Zone.Name": "id", "Zone.Jurisdiction": "code of a law", "Zone.Description": "public word about a zone", "Zone.AdminURLs": "addresses of control nodes", "Zone.SigningKey": "public key",
	"Region.Name": "id", "Region.Zone": "id", "Region.Provider": "id of a cloud", "Region.ProviderRegion": "id of a cloud's region", "Region.Partition": "id of a cloud's partition",
	"Region.Country": "ISO code", "Region.Jurisdiction": "code of a law", "Region.ClientSubnets": "networks, of operators and clouds, never of a client", "Region.Drain": "operator's word about a region", "Region.UpstreamNetworks": "networks of the seller's own servers", "Region.Labels": "ids of an operator's own, 63 lower-case characters at most",
	"LegalBasis.Name": "id", "LegalBasis.Kind": "enum", "LegalBasis.Status": "enum", "LegalBasis.Expires": "date", "LegalBasis.Source": "citation of a public act",
	"Policy.Name": "id", "Policy.Zone": "id", "WithinZone.Basis": "id", "WithinZone.Classes": "ids of data classes",
	"Pair.From": "id", "Pair.To": "id", "Pair.Basis": "id", "Pair.Classes": "ids of data classes", "Pair.ReviewBy": "date", "Pair.Status": "enum",
	"API.Name": "id", "API.Zone": "id", "API.Hosts": "public host names", "API.Policy": "id", "API.Summary": "published about the product", "API.Docs": "published about the product",
	"API.OpenAPI": "published about the product", "Route.Name": "id", "Route.Methods": "HTTP methods", "Route.PathPrefix": "template, never a request's path", "Route.Scope": "id",
	"Auth.KeyHeader": "name of a header", "Auth.KeyQuery": "name of a parameter", "Auth.Identity": "enum", "Issuer.Issuer": "address of a seller's own issuer of tokens", "Issuer.Audiences": "ids of services",
	"Issuer.Algorithms": "enums", "Issuer.JWKSURL": "address of public keys", "Issuer.JWKS": "public keys", "Issuer.Claim": "name of a claim, never its value", "Units.Header": "name of a header", "Units.GraphQL": "enum",
	"CORS.Origins": "origins of a seller's own pages", "CORS.Methods": "HTTP methods", "CORS.Headers": "names of headers", "CORS.Expose": "names of headers",
	"Rewrite.Strip": "template, never a request's path", "Rewrite.Put": "template, never a request's path", "Rewrite.Host": "name of the seller's own servers",
	"Fields.Remove": "names of headers", "Field.Name": "name of a header", "Field.Value": "a constant of a header, the same for all requests", "Validation.Requests": "enum", "Validation.Schema": "published about the product",

	"Upstream.Region": "id", "Upstream.URL": "address of the seller's own servers", "Health.Path": "path of a probe", "API.Labels": "ids of an operator's own, 63 lower-case characters at most",
	"Cache.Scope": "enumeration", "Dispatch.Choice": "enumeration", "Dispatch.Discovery": "enumeration", "Upstream.Protocol": "enumeration", "Health.Protocol": "enumeration", "Route.GRPCWeb": "enumeration", "Health.Service": "name of a service of the seller, in printable characters without space",
	"UpstreamTLS.ServerName": "name of the seller's own servers", "UpstreamTLS.CA": "certificates of authorities; Validate refuses anything else",
	"UpstreamTLS.ClientCertificate": "id of files at the edges",
	"Product.Name":                  "id", "Product.APIs": "ids", "Product.BillableOutcomes": "enums", "Product.Summary": "published about the product",
	"Plan.Name": "id", "Plan.Products": "ids", "Plan.PriorityClass": "id", "Plan.SLATarget": "number as text", "Plan.Price": "published price", "Quota.Period": "enum", "Quota.Mode": "enum",
	"NodeLevel.Name": "id", "Cluster.ID": "id of a cluster of etcd", "Cluster.Zone": "id", "Release.ID": "id of a cluster of etcd", "Release.Zone": "id", "Release.Status": "enum", "Release.By": "a zone and a pseudonym under its key, or id of a control node", "Release.Second": "a zone and a pseudonym under its key", "Release.From": "id", "Release.Reason": "operator's word about a cluster of etcd", "Node.Name": "id", "Node.Kind": "enum", "Node.Region": "id", "Node.Zone": "id", "Node.PeerAddr": "address of a node", "Node.AdminURL": "address of a node", "Node.RelayAddr": "address of a node", "Doors.Addresses": "public addresses of an edge",
	"Audit.Operator": "in the catalog a zone and a pseudonym under its key", "Audit.Call": "id", "Audit.RequestSHA256": "digest",
	"Revision.By": "a zone and a pseudonym under its key", "Revision.Call": "id", "Revision.Before": "what rested in the catalog before", "RevisedKey.Key": "key of the catalog", "RevisedKey.Action": "enum",
	"Switch.Name": "id", "Switch.Feature": "enum", "Switch.Region": "id", "Switch.API": "id", "Switch.Reason": "operator's word about a feature",
	"Rollout.By": "a zone and a pseudonym under its key", "Rollout.State": "enum", "Rollout.Why": "enum", "Rollout.Edge": "id", "Rollout.API": "id", "Rollout.Reason": "operator's word about a change of the catalog",
	"RolloutChange.Kind": "enum", "RolloutChange.Name": "id of a document of the catalog", "RolloutZone.Zone": "id", "RolloutZone.Canary": "id", "RegionRing.Regions": "ids",
	"Held.Value":       "a document of the catalog as it was",
	"Held.Through":     "policies as they were in between",
	"RolloutWord.Zone": "id", "RolloutWord.Verdict": "enum", "RolloutWord.Why": "enum", "RolloutWord.Edge": "id", "RolloutWord.API": "id", "RolloutWord.Canary": "id",
	"Gone.Name": "id, in the catalog of an API or a region",
}

func TestCatalog_HasNoFreeTextOfAZone(t *testing.T) {
	// The prefixes are read from the source: a new one must say what rests under it.
	file, err := parser.ParseFile(token.NewFileSet(), "model.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, d := range file.Decls {
		block, ok := d.(*ast.GenDecl)
		if !ok || !strings.HasPrefix(block.Doc.Text(), "Prefixes of the catalog group") {
			continue
		}
		found = true
		for _, s := range block.Specs {
			for _, name := range s.(*ast.ValueSpec).Names {
				if catalog[name.Name] == nil {
					t.Errorf("%s: say in this test which records rest under it", name.Name)
				}
			}
		}
	}
	if !found {
		t.Fatal("the prefixes of the catalog group are not where they were")
	}
	seen := map[string]bool{}
	var walk func(at string, v reflect.Type)
	walk = func(at string, v reflect.Type) {
		switch v.Kind() {
		case reflect.Pointer:
			walk(at, v.Elem())
		case reflect.Slice, reflect.Array:
			if v.Elem().Kind() == reflect.Uint8 {
				seen[at] = true
			} else {
				walk(at, v.Elem())
			}
		case reflect.String:
			seen[at] = true
		case reflect.Struct:
			if v == reflect.TypeFor[time.Time]() {
				return
			}
			for f := range v.Fields() {
				walk(v.Name()+"."+f.Name, f.Type)
			}
		case reflect.Map, reflect.Interface:
			t.Errorf("%s can hold anything, and rests in every zone", at)
		}
	}
	for _, v := range catalog {
		walk("", reflect.TypeOf(v))
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if crosses[name] == "" {
			t.Errorf("%s rests in every zone: text and bytes need a reason in this test's list, and free text of a zone has none", name)
		}
	}
	for name := range maps.Keys(crosses) {
		if !seen[name] {
			t.Errorf("%s has a reason and does not exist any more", name)
		}
	}
}
