package adminapi

import (
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// record is one of the model's resource types. Generated types stop here.
type record interface{ Validate() error }

func prefixOf(kind string) string {
	switch kind {
	case "Zone":
		return model.PrefixZone
	case "Region":
		return model.PrefixRegion
	case "LegalBasis":
		return model.PrefixBasis
	case "Policy":
		return model.PrefixPolicy
	case "API":
		return model.PrefixAPI
	case "Product":
		return model.PrefixProduct
	case "Plan":
		return model.PrefixPlan
	case "Switch":
		return model.PrefixSwitch
	case "Customer":
		return model.PrefixCustomer
	case "Closure":
		return model.PrefixClosure
	case "Drain":
		return model.PrefixDrain
	}
	panic("adminapi: kind " + kind + " has no prefix")
}

func keyOf(r record) string {
	switch v := r.(type) {
	case model.Zone:
		return model.PrefixZone + v.Name
	case model.Region:
		return model.PrefixRegion + v.Name
	case model.LegalBasis:
		return model.PrefixBasis + v.Name
	case model.Policy:
		return model.PrefixPolicy + v.Name
	case model.API:
		return model.APIKey(v.Zone, v.Name)
	case model.Product:
		return model.PrefixProduct + v.Name
	case model.Plan:
		return model.PrefixPlan + v.Name
	case model.Switch:
		return model.PrefixSwitch + v.Name
	case model.Customer:
		return model.PrefixCustomer + v.Name
	case model.Closure:
		return model.PrefixClosure + v.Name
	case model.Drain:
		return model.PrefixDrain + v.Name
	}
	panic(fmt.Sprintf("adminapi: %T has no key", r))
}

func decode(kind string, kv group.KV) (record, error) {
	switch kind {
	case "Zone":
		return model.Decode[model.Zone](kv.Key, kv.Value)
	case "Region":
		return model.Decode[model.Region](kv.Key, kv.Value)
	case "LegalBasis":
		return model.Decode[model.LegalBasis](kv.Key, kv.Value)
	case "Policy":
		return model.Decode[model.Policy](kv.Key, kv.Value)
	case "API":
		return model.Decode[model.API](kv.Key, kv.Value)
	case "Product":
		return model.Decode[model.Product](kv.Key, kv.Value)
	case "Plan":
		return model.Decode[model.Plan](kv.Key, kv.Value)
	case "Switch":
		return model.Decode[model.Switch](kv.Key, kv.Value)
	case "Customer":
		return model.Decode[model.Customer](kv.Key, kv.Value)
	case "Closure":
		return model.Decode[model.Closure](kv.Key, kv.Value)
	case "Drain":
		return model.Decode[model.Drain](kv.Key, kv.Value)
	}
	panic("adminapi: kind " + kind + " cannot be decoded")
}

// fromProto takes a resource in, filling the defaults that are part of a value's meaning, so that writing
// "active" or leaving it out is the same document.
func fromProto(r *adminv1.Resource) (record, error) {
	name := r.GetName()
	switch spec := r.GetSpec().(type) {
	case *adminv1.Resource_Zone:
		v := spec.Zone
		key, err := base64.StdEncoding.DecodeString(v.GetSigningKey())
		if err != nil {
			return nil, fault.New(fault.Invalid, "SIGNING_KEY_INVALID", "zone %s: the signing key is not base64", name).At("spec.signing_key")
		}
		if len(key) == 0 {
			key = nil
		}
		return model.Zone{Name: name, Jurisdiction: v.GetJurisdiction(), Description: v.GetDescription(), AdminURLs: v.GetAdminUrls(), SigningKey: key, ReadsNeedReason: v.GetReadsNeedReason()}, nil
	case *adminv1.Resource_Region:
		v := spec.Region
		return model.Region{Name: name, Zone: v.GetZone(), Provider: v.GetProvider(), ProviderRegion: v.GetProviderRegion(), Partition: v.GetPartition(),
			Country: v.GetCountry(), Jurisdiction: v.GetJurisdiction(), ControlOnly: v.GetControlOnly(), ClientSubnets: v.GetClientSubnets(), Drain: v.GetDrain(), Labels: labels(v.GetLabels()),
			UpstreamNetworks: v.GetUpstreamNetworks()}, nil
	case *adminv1.Resource_LegalBasis:
		v := spec.LegalBasis
		return model.LegalBasis{Name: name, Kind: v.GetKind(), Status: or(v.GetStatus(), "active"), Expires: v.GetExpires(), Source: v.GetSource()}, nil
	case *adminv1.Resource_Policy:
		return policyFromProto(name, spec.Policy)
	case *adminv1.Resource_Api:
		return apiFromProto(name, spec.Api)
	case *adminv1.Resource_Product:
		v := spec.Product
		return model.Product{Name: name, APIs: v.GetApis(), BillableOutcomes: v.GetBillableOutcomes(), Summary: v.GetSummary(), FreeCacheHits: v.GetFreeCacheHits()}, nil
	case *adminv1.Resource_Plan:
		return planFromProto(name, spec.Plan)
	case *adminv1.Resource_Customer:
		v := spec.Customer
		out := model.Customer{Name: name, Zone: v.GetZone(), DisplayName: v.GetDisplayName(), AccountID: v.GetAccountId(), Status: or(v.GetStatus(), "active"), TimeZone: v.GetTimeZone(), Labels: labels(v.GetLabels())}
		for _, s := range v.GetSubscriptions() {
			out.Subscriptions = append(out.Subscriptions, model.Subscription{Name: or(s.GetName(), s.GetPlan()), Plan: s.GetPlan()})
		}
		return out, nil
	case *adminv1.Resource_Closure:
		v := spec.Closure
		return model.Closure{Name: name, Zone: v.GetZone(), From: v.GetFrom(), To: v.GetTo(), Basis: v.GetBasis(), Reason: v.GetReason()}, nil
	case *adminv1.Resource_Switch:
		v := spec.Switch
		return model.Switch{Name: name, Feature: v.GetFeature(), Off: v.GetOff(), Region: v.GetRegion(), API: v.GetApi(), Reason: v.GetReason()}, nil
	case *adminv1.Resource_Drain:
		return model.Drain{Name: name, Zone: spec.Drain.GetZone(), Reason: spec.Drain.GetReason()}, nil
	}
	return nil, fault.New(fault.Invalid, "SPEC_MISSING", "resource %q has no spec", name).At("spec")
}

func policyFromProto(name string, v *adminv1.Policy) (record, error) {
	out := model.Policy{Name: name, Zone: v.GetZone(), TwoPerson: v.GetTwoPerson()}
	if w := v.GetWithinZone(); w != nil {
		out.WithinZone = &model.WithinZone{Basis: w.GetBasis(), Classes: w.GetClasses()}
	}
	for _, p := range v.GetPairs() {
		out.Pairs = append(out.Pairs, model.Pair{From: p.GetFrom(), To: p.GetTo(), Basis: p.GetBasis(), Classes: p.GetClasses(),
			Priority: int(p.GetPriority()), ReviewBy: p.GetReviewBy(), Status: or(p.GetStatus(), "open")})
	}
	if v.GetOfflineGrant() != nil {
		d, err := duration(v.GetOfflineGrant(), "spec.offline_grant")
		if err != nil {
			return nil, err
		}
		out.OfflineGrant = &d
	}
	return out, nil
}

func apiFromProto(name string, v *adminv1.API) (record, error) {
	out := model.API{Name: name, Zone: v.GetZone(), Hosts: v.GetHosts(), Policy: v.GetPolicy(), Summary: v.GetSummary(), Docs: v.GetDocs(), OpenAPI: v.GetOpenapi()}
	for i, r := range v.GetRoutes() {
		timeout, err := duration(r.GetTimeout(), fmt.Sprintf("spec.routes[%d].timeout", i))
		if err != nil {
			return nil, err
		}
		deadline, err := duration(r.GetDeadline(), fmt.Sprintf("spec.routes[%d].deadline", i))
		if err != nil {
			return nil, err
		}
		hedge, err := duration(r.GetHedgeAfter(), fmt.Sprintf("spec.routes[%d].hedge_after", i))
		if err != nil {
			return nil, err
		}
		out.Routes = append(out.Routes, model.Route{Name: r.GetName(), Methods: r.GetMethods(), PathPrefix: or(r.GetPathPrefix(), "/"),
			Timeout: timeout, MaxRequestBytes: r.GetMaxRequestBytes(), Scope: r.GetScope(), Deadline: deadline, MaxResponseBytes: r.GetMaxResponseBytes(),
			Free: r.GetFree(), Units: unitsFromProto(r.GetUnits()), HedgeAfter: hedge, GRPCWeb: r.GetGrpcWeb()})
		if err := cacheFromProto(r.GetCache(), &out.Routes[i], i); err != nil {
			return nil, err
		}
		if out.Routes[i].WebSocket, err = webSocketFromProto(r.GetWebsocket(), i); err != nil {
			return nil, err
		}
		if out.Routes[i].Shaping, err = shapingFromProto(r, fmt.Sprintf("spec.routes[%d].", i)); err != nil {
			return nil, err
		}
		out.Routes[i].GraphQL = graphqlFromProto(r.GetGraphql())
	}
	if err := upstreamsFromProto(v, &out); err != nil {
		return nil, err
	}
	out.Labels = labels(v.GetLabels())
	var err error
	if out.TCP, err = tcpFromProto(v.GetTcp()); err != nil {
		return nil, err
	}
	if out.Auth, err = authFromProto(v.GetAuth()); err != nil {
		return nil, err
	}
	if out.Shaping, err = shapingFromProto(v, "spec."); err != nil {
		return nil, err
	}
	if c := v.GetConcurrency(); c != nil {
		out.Concurrency = &model.Concurrency{Min: int(c.GetMin()), Max: int(c.GetMax())}
	}
	return out, nil
}

func planFromProto(name string, v *adminv1.Plan) (record, error) {
	out := model.Plan{Name: name, Products: v.GetProducts(), PriorityClass: v.GetPriorityClass(), SLATarget: v.GetSlaTarget(), Price: v.GetPrice()}
	if r := v.GetRateLimit(); r != nil {
		out.RateLimit = &model.RateLimit{RequestsPerSecond: int(r.GetRequestsPerSecond()), Burst: int(r.GetBurst())}
	}
	if q := v.GetQuota(); q != nil {
		window, err := duration(q.GetWindow(), "spec.quota.window")
		if err != nil {
			return nil, err
		}
		out.Quota = &model.Quota{Units: q.GetUnits(), Period: or(q.GetPeriod(), "month"), Mode: or(q.GetMode(), "soft"),
			Window: window, GracePercent: int(q.GetGracePercent())}
	}
	for i, w := range v.GetRateLimits() {
		per, err := duration(w.GetPer(), fmt.Sprintf("spec.rate_limits[%d].per", i))
		if err != nil {
			return nil, err
		}
		out.RateLimits = append(out.RateLimits, model.RateWindow{Requests: int(w.GetRequests()), Per: per, Burst: int(w.GetBurst())})
	}
	out.MaxConcurrent = int(v.GetMaxConcurrent())
	var err error
	out.MaxKeyStaleness, err = duration(v.GetMaxKeyStaleness(), "spec.max_key_staleness")
	return out, err
}

// toProto shows a stored resource. at is its place in the store, see versionOf; zero of one not stored yet.
func toProto(rec record, at group.Revision) *adminv1.Resource {
	out := &adminv1.Resource{}
	if at.Index > 0 {
		out.Etag = at.String()
	}
	switch v := rec.(type) {
	case model.Zone:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Zone{Zone: &adminv1.Zone{Jurisdiction: v.Jurisdiction, Description: v.Description, AdminUrls: v.AdminURLs,
			SigningKey: base64.StdEncoding.EncodeToString(v.SigningKey), ReadsNeedReason: v.ReadsNeedReason}}
	case model.Region:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Region{Region: &adminv1.Region{Zone: v.Zone, Provider: v.Provider, ProviderRegion: v.ProviderRegion, Partition: v.Partition,
			Country: v.Country, Jurisdiction: v.Jurisdiction, ControlOnly: v.ControlOnly, ClientSubnets: v.ClientSubnets, Drain: v.Drain, Labels: v.Labels, UpstreamNetworks: v.UpstreamNetworks}}
	case model.LegalBasis:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_LegalBasis{LegalBasis: &adminv1.LegalBasis{Kind: v.Kind, Status: v.Status, Expires: v.Expires, Source: v.Source}}
	case model.Policy:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Policy{Policy: policyToProto(v)}
	case model.API:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Api{Api: apiToProto(v)}
	case model.Product:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Product{Product: &adminv1.Product{Apis: v.APIs, BillableOutcomes: v.BillableOutcomes, Summary: v.Summary, FreeCacheHits: v.FreeCacheHits}}
	case model.Plan:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Plan{Plan: planToProto(v)}
	case model.Customer:
		out.Name = v.Name
		c := &adminv1.Customer{Zone: v.Zone, DisplayName: v.DisplayName, AccountId: v.AccountID, Status: v.Status, TimeZone: v.TimeZone, Labels: v.Labels}
		for _, s := range v.Subscriptions {
			c.Subscriptions = append(c.Subscriptions, &adminv1.Subscription{Name: s.Name, Plan: s.Plan})
		}
		out.Spec = &adminv1.Resource_Customer{Customer: c}
	case model.Closure:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Closure{Closure: &adminv1.Closure{Zone: v.Zone, From: v.From, To: v.To, Basis: v.Basis, Reason: v.Reason}}
	case model.Switch:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Switch{Switch: &adminv1.Switch{Feature: v.Feature, Off: v.Off, Region: v.Region, Api: v.API, Reason: v.Reason}}
	case model.Drain:
		out.Name = v.Name
		out.Spec = &adminv1.Resource_Drain{Drain: &adminv1.Drain{Zone: v.Zone, Reason: v.Reason}}
	}
	return out
}

func policyToProto(v model.Policy) *adminv1.Policy {
	out := &adminv1.Policy{Zone: v.Zone, TwoPerson: v.TwoPerson}
	if w := v.WithinZone; w != nil {
		out.WithinZone = &adminv1.WithinZone{Basis: w.Basis, Classes: w.Classes}
	}
	for _, p := range v.Pairs {
		out.Pairs = append(out.Pairs, &adminv1.Pair{From: p.From, To: p.To, Basis: p.Basis, Classes: p.Classes,
			Priority: int32(p.Priority), ReviewBy: p.ReviewBy, Status: p.Status})
	}
	if v.OfflineGrant != nil {
		out.OfflineGrant = durationpb.New(*v.OfflineGrant)
	}
	return out
}

func apiToProto(v model.API) *adminv1.API {
	out := &adminv1.API{Zone: v.Zone, Hosts: v.Hosts, Policy: v.Policy, Summary: v.Summary, Docs: v.Docs, Openapi: v.OpenAPI, Labels: v.Labels}
	for _, r := range v.Routes {
		out.Routes = append(out.Routes, &adminv1.Route{Name: r.Name, Methods: r.Methods, PathPrefix: r.PathPrefix,
			Timeout: showDuration(r.Timeout), MaxRequestBytes: r.MaxRequestBytes, Scope: r.Scope, Deadline: showDuration(r.Deadline), MaxResponseBytes: r.MaxResponseBytes,
			Free: r.Free, Units: unitsToProto(r.Units), HedgeAfter: showDuration(r.HedgeAfter), GrpcWeb: r.GRPCWeb, Cache: cacheToProto(r.Cache), Websocket: webSocketToProto(r.WebSocket),
			Cors: corsToProto(r.CORS), Rewrite: rewriteToProto(r.Rewrite), Validation: validationToProto(r.Validation), Graphql: graphqlToProto(r.GraphQL)})
	}
	out.Tcp, out.Auth = tcpToProto(v.TCP), authToProto(v.Auth)
	if c := v.Concurrency; c != nil {
		out.Concurrency = &adminv1.Concurrency{Min: int32(c.Min), Max: int32(c.Max)}
	}
	upstreamsToProto(v, out)
	out.Cors, out.Rewrite, out.Validation = corsToProto(v.CORS), rewriteToProto(v.Rewrite), validationToProto(v.Validation)
	return out
}

func planToProto(v model.Plan) *adminv1.Plan {
	out := &adminv1.Plan{Products: v.Products, PriorityClass: v.PriorityClass, SlaTarget: v.SLATarget, Price: v.Price, MaxKeyStaleness: showDuration(v.MaxKeyStaleness)}
	if r := v.RateLimit; r != nil {
		out.RateLimit = &adminv1.RateLimit{RequestsPerSecond: int32(r.RequestsPerSecond), Burst: int32(r.Burst)}
	}
	for _, w := range v.RateLimits {
		out.RateLimits = append(out.RateLimits, &adminv1.RateWindow{Requests: int32(w.Requests), Per: durationpb.New(w.Per), Burst: int32(w.Burst)})
	}
	out.MaxConcurrent = int32(v.MaxConcurrent)
	if q := v.Quota; q != nil {
		out.Quota = &adminv1.Quota{Units: q.Units, Period: q.Period, Mode: q.Mode, GracePercent: int32(q.GracePercent)}
		if q.Window != 0 {
			out.Quota.Window = durationpb.New(q.Window)
		}
	}
	return out
}

// duration refuses what time.Duration would silently clamp.
func duration(d *durationpb.Duration, field string) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration().Truncate(time.Second) != time.Duration(d.Seconds)*time.Second {
		return 0, fault.New(fault.Invalid, "DURATION_INVALID", "%s is no duration of less than 292 years", field).At(field)
	}
	return d.AsDuration(), nil
}

func showDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// versionOf is what an etag says: the transaction that wrote a key last, in the store's present epoch. Without the epoch an etag
// that somebody holds over a restore would fit whatever was written under the same index since.
func versionOf(snap group.Snapshot, kv group.KV) group.Revision {
	return group.Revision{Epoch: snap.Revision().Epoch, Index: kv.ModIndex}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// fullName is how people name a record: an API with its zone, since its name is unique there only.
func fullName(r record) (kind, name string) {
	p := toProto(r, group.Revision{})
	k, _ := manifest.KindOf(p)
	return k.Name, p.GetName()
}

// labels are in any order in a request, and in one in what is stored; Validate says what is wrong with them.
func labels(given []string) []string {
	if len(given) == 0 {
		return nil
	}
	return slices.Sorted(slices.Values(given))
}
