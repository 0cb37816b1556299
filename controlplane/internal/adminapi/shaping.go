package adminapi

import (
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// What is done to requests and answers beside sending them on, as messages and as what is stored.

type shaped interface {
	GetCors() *adminv1.CORS
	GetRewrite() *adminv1.Rewrite
	GetValidation() *adminv1.Validation
}

func shapingFromProto(v shaped, at string) (out model.Shaping, err error) {
	if c := v.GetCors(); c != nil {
		out.CORS = &model.CORS{Origins: c.GetOrigins(), Methods: c.GetMethods(), Headers: c.GetHeaders(), Expose: c.GetExpose(), Credentials: c.GetCredentials()}
		if out.CORS.MaxAge, err = duration(c.GetMaxAge(), at+"cors.max_age"); err != nil {
			return out, err
		}
	}
	if r := v.GetRewrite(); r != nil {
		out.Rewrite = &model.Rewrite{Strip: r.GetPath().GetStrip(), Put: r.GetPath().GetPut(), Host: r.GetHost(),
			Request: fieldsFromProto(r.GetRequest()), Response: fieldsFromProto(r.GetResponse())}
	}
	if c := v.GetValidation(); c != nil {
		out.Validation = &model.Validation{Requests: c.GetRequests(), Schema: c.GetSchema()}
	}
	return out, nil
}

func fieldsFromProto(v *adminv1.Fields) model.Fields {
	list := func(fields []*adminv1.Field) (out []model.Field) {
		for _, f := range fields {
			out = append(out, model.Field{Name: f.GetName(), Value: f.GetValue()})
		}
		return out
	}
	return model.Fields{Remove: v.GetRemove(), Set: list(v.GetSet()), Add: list(v.GetAdd())}
}

func graphqlFromProto(v *adminv1.GraphQL) *model.GraphQL {
	if v == nil {
		return nil
	}
	return &model.GraphQL{MaxDepth: int(v.GetMaxDepth()), MaxAliases: int(v.GetMaxAliases()), MaxRootFields: int(v.GetMaxRootFields()), MaxCost: v.GetMaxCost(),
		MaxBatch: int(v.GetMaxBatch()), Introspection: v.GetIntrospection()}
}

func corsToProto(v *model.CORS) *adminv1.CORS {
	if v == nil {
		return nil
	}
	return &adminv1.CORS{Origins: v.Origins, Methods: v.Methods, Headers: v.Headers, Expose: v.Expose, Credentials: v.Credentials, MaxAge: showDuration(v.MaxAge)}
}

func rewriteToProto(v *model.Rewrite) *adminv1.Rewrite {
	if v == nil {
		return nil
	}
	out := &adminv1.Rewrite{Host: v.Host, Request: fieldsToProto(v.Request), Response: fieldsToProto(v.Response)}
	if v.Strip != "" || v.Put != "" {
		out.Path = &adminv1.RewritePath{Strip: v.Strip, Put: v.Put}
	}
	return out
}

func fieldsToProto(v model.Fields) *adminv1.Fields {
	if len(v.Remove)+len(v.Set)+len(v.Add) == 0 {
		return nil
	}
	named := func(list []model.Field) (out []*adminv1.Field) {
		for _, f := range list {
			out = append(out, &adminv1.Field{Name: f.Name, Value: f.Value})
		}
		return out
	}
	return &adminv1.Fields{Remove: v.Remove, Set: named(v.Set), Add: named(v.Add)}
}

func validationToProto(v *model.Validation) *adminv1.Validation {
	if v == nil {
		return nil
	}
	return &adminv1.Validation{Requests: v.Requests, Schema: v.Schema}
}

func graphqlToProto(v *model.GraphQL) *adminv1.GraphQL {
	if v == nil {
		return nil
	}
	return &adminv1.GraphQL{MaxDepth: int32(v.MaxDepth), MaxAliases: int32(v.MaxAliases), MaxRootFields: int32(v.MaxRootFields), MaxCost: v.MaxCost,
		MaxBatch: int32(v.MaxBatch), Introspection: v.Introspection}
}
