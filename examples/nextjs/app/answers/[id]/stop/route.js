import { gateway, passOn } from "../../../gateway";

export async function POST(request, { params }) {
  const { id } = await params;
  return passOn(await gateway(`/${encodeURIComponent(id)}/cancel`, { method: "POST" }));
}
