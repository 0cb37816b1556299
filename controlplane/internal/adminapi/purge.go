package adminapi

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

// PurgeCache ends what edges keep of an API of this zone. It needs the zone's quorum alone, and goes down the stream of
// policy: an edge that nobody reaches does it when it is reached, before it acknowledges the zone's position.
func (s *server) PurgeCache(ctx context.Context, req *adminv1.PurgeCacheRequest) (*adminv1.PurgeCacheResponse, error) {
	id := requestID("purge/"+req.GetApi(), req.GetRequestId())
	api, err := s.ownAPI(ctx, req.GetApi())
	if err != nil {
		return nil, err
	}
	purges, err := purgesOf(req, api)
	if err != nil {
		return nil, err
	}
	// A node of before purges would hand out tables without this one, and an edge acknowledge its position and give on.
	err = onceLeveled(ctx, s.Wait, func() error {
		return known(s.freshOrLocal(ctx, s.Catalog), "purge of API "+api.Name, model.Needs{Nodes: 1, Edges: 1, Field: "purging"}, s.Zone, s.Zone)
	})
	if err != nil {
		return nil, err
	}
	key := model.PrefixPurge + api.Name
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		was, _, err := stored[model.Purges](snap, key)
		if err != nil {
			return nil, err
		}
		was.API = api.Name
		now := was.Add(time.Now().UTC().Truncate(time.Millisecond), purges...)
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: id + "/" + strconv.Itoa(attempt), Compares: []group.Compare{compareAt(state{snap: snap}, key)},
			Ops: []group.Op{{Key: key, Value: model.Encode(now)}}})
		if err != nil {
			return nil, err
		}
		if !res.Succeeded {
			continue
		}
		out := &adminv1.PurgeCacheResponse{Index: res.Revision.Index, Seq: now.Seq}
		out.Holders, err = s.keepers(ctx, api, res.Revision.Index)
		return out, err
	}
	return nil, outran()
}

// ownAPI is an API of this zone. That another zone has one of this name is for its own nodes to say.
func (s *server) ownAPI(ctx context.Context, name string) (model.API, error) {
	api, ok, err := stored[model.API](s.freshOrLocal(ctx, s.Catalog), model.APIKey(s.Zone, name))
	if err == nil && !ok {
		err = fault.New(fault.NotFound, "API_NOT_FOUND", "API %q does not exist in zone %s", name, s.Zone)
	}
	return api, err
}

func purgesOf(req *adminv1.PurgeCacheRequest, api model.API) (out []model.Purge, err error) {
	given := 0
	for _, is := range []bool{len(req.GetTags()) > 0, len(req.GetUrls()) > 0, req.GetAll()} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, fault.New(fault.Invalid, "PURGE_INVALID", "say what is to go of API %s: tags, or URLs, or all of it", api.Name).At("tags")
	}
	if req.GetAll() {
		out = append(out, model.Purge{Soft: req.GetSoft()})
	}
	for i, tag := range req.GetTags() {
		if strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == ',' || r >= 0x7f }) {
			return nil, fault.New(fault.Invalid, "TAG_INVALID", "tag %q holds a space, a comma or what is not ASCII: no upstream can name it", tag).At("tags[" + strconv.Itoa(i) + "]")
		}
		out = append(out, model.Purge{What: table.PurgeTag(tag), Soft: req.GetSoft()})
	}
	for i, text := range req.GetUrls() {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
			return nil, fault.New(fault.Invalid, "URL_INVALID", "URL %d is not https://host/path?query", i+1).At("urls[" + strconv.Itoa(i) + "]")
		}
		host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		if !slices.ContainsFunc(api.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
			return nil, fault.New(fault.Invalid, "HOST_UNKNOWN", "API %s is not published at %s; its hosts: %s", api.Name, host, some(api.Hosts)).At("urls[" + strconv.Itoa(i) + "]")
		}
		out = append(out, model.Purge{What: table.PurgeURL(host, or(u.Path, "/"), u.RawQuery), Soft: req.GetSoft()})
	}
	return out, nil
}

// keepers are the edges of regions where the API is deployed, and whether each has acknowledged a position of the zone.
func (s *server) keepers(ctx context.Context, api model.API, index uint64) (out []*adminv1.Holder, err error) {
	reports, err := s.reportsByEdge(ctx)
	if err != nil {
		return nil, err
	}
	for kv := range s.Catalog.Local().List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if n.Kind != "edge" || n.Zone != s.Zone || !slices.ContainsFunc(api.Upstreams, func(u model.Upstream) bool { return u.Region == n.Region }) {
			continue
		}
		h := &adminv1.Holder{Edge: n.Name, Region: n.Region, Status: statusUnknown}
		if r := reports[n.Name]; r != nil {
			row := &adminv1.Node{}
			fill(row, r)
			h.Status, h.InSync = row.Status, r.GetConnected() && row.ZonePosition.GetIndex() >= index
		}
		out = append(out, h)
	}
	return out, nil
}
