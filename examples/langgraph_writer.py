# mypy: ignore-errors
"""A LangGraph graph that writes its own stream: python examples/langgraph_writer.py "Will it rain?" (pip install '.[frameworks]')"""

import asyncio
import sys
from os import getenv

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from midstream.client import AsyncClient


@tool
def weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"18 degrees and rain in {city}"


async def main(question, url, key):
    async def ask(state):
        return {"messages": [await ChatOpenAI(model="gpt-4o-mini").bind_tools([weather]).ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node(ask).add_node("tools", ToolNode([weather])).add_edge(START, "ask")
    agent = graph.add_edge("tools", "ask").add_conditional_edges("ask", tools_condition).compile()
    async with AsyncClient(url, token=key) as client:
        stream = await client.create_external()
        print(stream.url, flush=True)
        async with client.write(stream.id) as answer:
            async for mode, part in agent.astream({"messages": question}, stream_mode=["messages", "updates"]):
                if mode == "messages" and part[1]["langgraph_node"] == "ask":
                    await answer.token(str(part[0].text))
                elif mode == "updates" and "tools" in part:
                    for message in part["tools"]["messages"]:
                        await answer.event("tool", {"name": message.name, "result": message.content})


asyncio.run(main(sys.argv[1], getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), getenv("MIDSTREAM_API_KEY")))
